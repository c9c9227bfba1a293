from __future__ import annotations

import json

import pytest

from kasatune.errors import InputError, ModelError
from kasatune.recipes.schema import Recipe

ROBERTA = {
    "architectures": ["RobertaForMaskedLM"],
    "model_type": "roberta",
    "vocab_size": 50265,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 99}


@pytest.fixture
def folder(tmp_path):
    def folder(**sizes):
        (tmp_path / "config.json").write_text(json.dumps(ROBERTA | sizes))
        return str(tmp_path)

    return folder


@pytest.fixture
def rows(tmp_path):
    for name, count in (("train", 70), ("validation", 10)):
        lines = [f"text {index},{'ab'[index % 2]}" for index in range(count)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["sentence,answer", *lines]))
    own = {"train": str(tmp_path / "train.csv"), "validation": str(tmp_path / "validation.csv")}
    return {"name": "classification", "text": "sentence", "label": "answer", **own}


def plan(model, task=None, training=None, **method):
    from kasatune.training.plan import make_plan

    sections = {"model": {"name": model}, "task": task or {"name": "glue/rte"}, "method": method}
    return make_plan(Recipe.model_validate({**sections, "training": training or {}}))


@pytest.mark.parametrize(("sizes", "trained"), [(BASE, 295_104), (LARGE, 786_816)])
def test_roberta_has_the_published_counts_from_its_configuration_alone(folder, sizes, trained):
    found = plan(folder(**sizes), r=8, target_modules=["query", "value"])
    hidden = sizes["hidden_size"]
    assert found.problems == ()
    assert found.trainable_parameters == trained
    assert found.head_parameters == hidden * hidden + hidden + 2 * hidden + 2
    assert len(found.layers) == 2 * sizes["num_hidden_layers"]
    assert {(layer.kind, layer.shape, layer.rank) for layer in found.layers} == {("Linear", (hidden, hidden), 8)}


def test_default_targets_are_those_of_the_model_type(folder):
    found = plan(folder(**TINY))
    assert {layer.name.rpartition(".")[2] for layer in found.layers} == {"query", "value"}


def test_a_dense_core_trains_r_squared_values(folder):
    diagonal, dense = (plan(folder(**TINY), core=core).trainable_parameters for core in ("diagonal", "dense"))
    assert dense - diagonal == 4 * (8 * 8 - 8)


def test_adapter_files_are_as_large_as_the_tensors_in_them(folder):
    found = plan(folder(**TINY))
    tail = 4 * 8 * (32 + 32)
    assert found.adapter_bytes == {
        "kasa": 4 * (found.trainable_parameters + tail + found.head_parameters),
        "adapter": 4 * (2 * tail + found.head_parameters),
    }


def real_counts(path, **method):
    """Trained parameters without and with the head, of the method attached to a model with weights."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from kasatune import methods
    from kasatune.methods.shared.trained_parameters import trainable

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(path))
    settings = Recipe.model_validate({"model": {"name": path}, "task": {"name": "glue/rte"}, "method": method}).method
    attached = methods.load(settings.name).attach(model, settings, "classification", ["classifier"])
    sizes = {key: value.numel() for key, value in trainable(attached).items()}
    return sum(size for key, size in sizes.items() if "classifier" not in key), sum(sizes.values())


@pytest.mark.parametrize(
    "method",
    [
        {"name": "kasa"},
        {"name": "kasa", "core": "dense", "target_modules": "all-linear"},
        {"name": "kasa", "target_modules": r".*layer\.1\..*(query|intermediate\.dense)"},
        {"name": "lora", "r": 4, "target_modules": ["query", "output.dense"]},
        {"name": "peft-kasa"},
        {"name": "full"},
        {"name": "bitfit"},
    ],
)
def test_the_plan_counts_what_is_really_trained(folder, method):
    found = plan(folder(**TINY), **method)
    assert found.problems == ()
    trained, with_head = real_counts(folder(**TINY), **method)
    assert found.trainable_parameters == trained
    assert found.trainable_parameters + found.head_parameters == with_head


def test_a_fitted_head_trains_nothing_else(folder):
    assert plan(folder(**TINY), name="head").trainable_parameters == 0


def test_steps_are_counted_from_the_rows(folder, rows):
    found = plan(folder(**TINY), rows, {"batch_size": 32, "gradient_accumulation": 4, "epochs": 1.5})
    assert (found.rows, found.steps_per_epoch, found.steps) == (70, 3, 5)
    assert plan(folder(**TINY), rows, {"max_steps": 2}).steps == 2
    assert plan(folder(**TINY), {**rows, "max_train": 40}).steps_per_epoch == 2


def test_rows_on_the_hub_are_not_fetched(folder):
    found = plan(folder(**TINY))
    assert (found.rows, found.steps) == (None, None)
    assert any("hub" in note for note in found.notes)


def test_what_a_method_ignores_is_told(folder):
    assert plan(folder(**TINY), name="lora", beta=0.5, core="dense").notes[-2:] == (
        "method.core is not used by lora",
        "method.beta is not used by lora",
    )
    assert not any("beta" in note for note in plan(folder(**TINY), name="peft-kasa", beta=0.5).notes)
    assert not any("not used" in note for note in plan(folder(**TINY), name="lora").notes)


def test_memory_grows_with_what_it_holds(folder):
    name = folder(**TINY)
    usual = plan(name).memory_bytes
    assert usual["total"] == sum(size for what, size in usual.items() if what != "total")
    assert plan(name, training={"gradient_accumulation": 8}).memory_bytes["activations"] == usual["activations"] // 8
    assert plan(name, training={"gradient_checkpointing": True}).memory_bytes["activations"] < usual["activations"]
    assert plan(name, name="full").memory_bytes["optimizer"] > usual["optimizer"]


def test_quantized_weights_take_less(folder):
    from kasatune.training.plan import make_plan

    def weights(kind):
        sections = {"model": {"name": folder(**BASE), "quantization": kind}, "task": {"name": "glue/rte"}}
        return make_plan(Recipe.model_validate(sections)).memory_bytes["weights"]

    assert weights("nf4") < weights("int8") < weights("none")


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ({"r": 32}, ["method.r: 32", "min(out, in) = 32", "query"]),
        ({"r": 33, "name": "peft-kasa"}, ["method.r: 33", "min(out, in) = 32"]),
        ({"target_modules": ["query", "valeu"]}, ["valeu", "matches no layer", "value"]),
        ({"target_modules": r".*nothing"}, [".*nothing", "matches no layer"]),
        ({"target_modules": ["query", "LayerNorm"]}, ["LayerNorm", "Linear and Conv1D"]),
    ],
)
def test_what_would_fail_is_foreseen(folder, method, words):
    found = plan(folder(**TINY), **method)
    assert found.problems
    assert all(any(word in problem for problem in found.problems) for word in words)
    assert found.trainable_parameters is None


def test_every_problem_is_foreseen_at_once(folder, rows):
    task = {**rows, "train": "nowhere.csv", "max_length": 600}
    found = plan(folder(**TINY), task, r=40, target_modules=["query", "valeu"])
    assert len(found.problems) == 4


def test_missing_rows_leave_the_rest_of_the_plan_whole(folder, rows):
    found = plan(folder(**TINY), {**rows, "train": "nowhere.csv"})
    assert len(found.problems) == 1
    assert found.trainable_parameters == 4 * (8 * (32 + 32) + 8)
    assert found.steps is None


def test_a_model_type_without_default_targets_is_named(tmp_path):
    config = {"model_type": "xlnet", "d_model": 32, "n_layer": 1, "n_head": 2, "d_inner": 32, "vocab_size": 50}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "xlnet" in " ".join(plan(str(tmp_path)).problems)


def test_conv1d_layers_are_read_the_right_way_round(tmp_path):
    config = {"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 50, "n_positions": 512}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (layer,) = plan(str(tmp_path), target_modules=["c_attn"]).layers
    assert (layer.kind, layer.shape) == ("Conv1D", (96, 32))


def test_require_feasible_gives_every_reason(folder):
    from kasatune.training.plan import require_feasible

    sections = {"model": {"name": folder(**TINY)}, "task": {"name": "glue/rte"}}
    assert require_feasible(Recipe.model_validate(sections)).problems == ()
    bad = Recipe.model_validate({**sections, "method": {"r": 99, "target_modules": ["query", "x"]}})
    with pytest.raises(InputError, match=r"(?s)matches no layer.*method\.r: 99"):
        require_feasible(bad)


@pytest.mark.parametrize("config", ["not json", "{}", '{"model_type": "no-such-type"}', '{"model_type": "vit"}'])
def test_a_model_that_cannot_be_built_is_named(tmp_path, config):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ModelError, match=r"model\.name"):
        plan(str(tmp_path))
