"""The second adapter of an equal configuration, and KaSA under TRL's trainers that compare with a reference."""

import copy
import importlib.util
import math
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model

from kasatune import KasaConfig
from kasatune.kasa.call_stack import REFERENCE_TRAINERS
from kasatune.kasa.layer import kasa_layers
from tests.kasa.models import shaken
from tests.kasa.penalty_probe import llama
from tests.kasa.test_penalty_sft import tokenizer

datasets = pytest.importorskip("datasets", reason="needs the extra kasatune[sft]")
trl = pytest.importorskip("trl", reason="needs the extra kasatune[sft]")

PAIRS = [
    {"prompt": "w1 w2 w3 ", "chosen": "w4 w5", "rejected": "w6"},
    {"prompt": "w9 ", "chosen": "w7", "rejected": "w8 w1 w2"},
    {"prompt": "w3 w3 ", "chosen": "w5 w6 w7", "rejected": "w1 w2"},
    {"prompt": "w5 w9 ", "chosen": "w2 w1", "rejected": "w4"},
]
CONFIGS = {
    "magnitude": {},
    "authors, dense": {"convention": "authors", "core": "dense"},
    "fold": {"truncation": "fold"},
    "activation": {"truncate_by": "activation", "drop": 3, "protect": 0.05},
    "nothing dropped": {"drop": 0},
}


def config(**changes):
    return KasaConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], **changes)


def attached(**changes):
    torch.manual_seed(0)
    return get_peft_model(llama(), config(**changes))


def log_probabilities(model):
    """The sums over the answers and their ends, of the chosen and of the rejected ones."""
    words, sums = tokenizer(), []
    for kind in ("chosen", "rejected"):
        for pair in PAIRS:
            prompt, row = (words(text)["input_ids"] for text in (pair["prompt"], pair["prompt"] + pair[kind] + "</s>"))
            with torch.no_grad():
                log_p = model.eval()(input_ids=torch.tensor([row])).logits[0].log_softmax(-1)
            sums.append(sum(float(log_p[i - 1, row[i]]) for i in range(len(prompt), len(row))))
    return sums[: len(PAIRS)], sums[len(PAIRS) :]


ONE_STEP = {
    "max_steps": 1,
    "per_device_train_batch_size": 4,
    "logging_steps": 1,
    "report_to": [],
    "bf16": False,
    "use_cpu": True,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "disable_tqdm": True,
}


def first_step(model, folder, **arguments):
    """The first log of a DPO run on all pairs in one batch, and its trainer."""
    settings = trl.DPOConfig(
        output_dir=str(folder),
        learning_rate=1e-2,
        **ONE_STEP,
    )
    trainer = trl.DPOTrainer(
        model=model,
        args=settings,
        train_dataset=datasets.Dataset.from_list(PAIRS),
        processing_class=tokenizer(),
        **arguments,
    )
    trainer.train()
    return trainer.state.log_history[0], trainer


def mean(values):
    return sum(values) / len(values)


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=list(CONFIGS))
@pytest.mark.parametrize("start", ["fresh", "trained"])
def test_dpo_on_an_attached_adapter_starts_at_the_policy(changes, start, tmp_path):
    model = attached(**changes)
    if start == "trained":
        shaken(model)
    before = log_probabilities(model)
    log, trainer = first_step(model, tmp_path)
    assert log["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert log["logps/chosen"] == pytest.approx(mean(before[0]), abs=1e-4)
    assert log["logps/rejected"] == pytest.approx(mean(before[1]), abs=1e-4)
    trainer.model.set_adapter("ref")  # still the policy before the step
    after = log_probabilities(trainer.model)
    assert torch.allclose(torch.tensor(after), torch.tensor(before), atol=1e-4)
    trainer.model.set_adapter("default")
    assert not torch.allclose(torch.tensor(log_probabilities(trainer.model)), torch.tensor(before), atol=1e-2)


@pytest.mark.parametrize("changes", [CONFIGS[name] for name in ("magnitude", "fold", "nothing dropped")])
def test_dpo_with_a_peft_config_starts_at_the_policy(changes, tmp_path):
    log, trainer = first_step(llama(), tmp_path, peft_config=config(**changes))
    assert log["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert ("ref" in trainer.model.peft_config) == ("drop" not in changes or changes["drop"] > 0)
    assert not any(".ref" in name and parameter.requires_grad for name, parameter in trainer.model.named_parameters())


def test_dpo_continues_an_adapter_loaded_from_files(tmp_path):
    model = shaken(attached(truncate_by="activation", drop=3))
    before = log_probabilities(model)
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(llama(), tmp_path / "adapter", is_trainable=True)
    log, _ = first_step(loaded, tmp_path)
    assert log["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert log["logps/chosen"] == pytest.approx(mean(before[0]), abs=1e-4)


@pytest.mark.parametrize(
    ("algorithm", "given"), [("GRPO", "peft_config"), ("GRPO", "fresh"), ("GRPO", "trained"), ("RLOO", "trained")]
)
def test_grpo_and_rloo_start_without_divergence_from_their_reference(algorithm, given, tmp_path):
    model = llama()
    if given != "peft_config":
        model = attached() if given == "fresh" else shaken(attached())
    settings = getattr(trl, f"{algorithm}Config")(
        output_dir=str(tmp_path),
        num_generations=2,
        max_completion_length=4,
        beta=0.1,
        **ONE_STEP,
    )
    trainer = getattr(trl, f"{algorithm}Trainer")(
        model=model,
        reward_funcs=lambda completions, **_: [float(len(text)) for text in completions],
        args=settings,
        train_dataset=datasets.Dataset.from_list([{"prompt": pair["prompt"]} for pair in PAIRS]),
        processing_class=tokenizer(),
        peft_config=config() if given == "peft_config" else None,
    )
    trainer.train()
    assert trainer.state.log_history[0]["kl"] == pytest.approx(0.0, abs=1e-6)


def test_kto_starts_without_divergence_from_its_reference(tmp_path):
    settings = trl.KTOConfig(output_dir=str(tmp_path), **ONE_STEP)
    answers = [
        {"prompt": pair["prompt"], "completion": pair[key], "label": key == "chosen"}
        for pair, key in zip(PAIRS, ("chosen", "rejected") * 2, strict=True)
    ]
    trainer = trl.KTOTrainer(
        model=shaken(attached()),
        args=settings,
        train_dataset=datasets.Dataset.from_list(answers),
        processing_class=tokenizer(),
    )
    trainer.train()
    log = trainer.state.log_history[0]
    assert [log[f"rewards/{kind}"] for kind in ("chosen", "rejected")] == pytest.approx([0.0, 0.0], abs=1e-6)
    assert log["loss"] == pytest.approx(0.5, abs=1e-5)  # 1 - sigmoid(0)


@pytest.mark.parametrize("name", sorted(REFERENCE_TRAINERS))
def test_the_trainers_with_a_reference_are_where_they_are_looked_for(name):
    source = Path(importlib.util.find_spec(name).origin).read_text(encoding="utf-8")
    assert 'adapter_name="ref" if "ref" in' in source
    assert "def __init__(" in source


def test_trainers_without_a_reference_get_no_second_adapter(tmp_path):
    trainer = trl.SFTTrainer(
        model=llama(),
        args=trl.SFTConfig(output_dir=str(tmp_path), report_to=[], bf16=False, use_cpu=True),
        train_dataset=datasets.Dataset.from_dict({"text": ["w1 w2"]}),
        processing_class=tokenizer(),
        peft_config=config(),
    )
    assert list(trainer.model.peft_config) == ["default"]


def no_measurement(*_, **__):
    raise AssertionError("activations are measured, or a weight is decomposed, again")


@pytest.mark.parametrize("same", ["object", "copy", "equal"])
def test_a_second_adapter_of_an_equal_configuration_takes_the_tails(same, monkeypatch):
    settings = config(truncate_by="activation", drop=3, protect=0.05)
    model = get_peft_model(llama(), settings)
    second = {
        "object": settings,
        "copy": copy.deepcopy(settings),
        "equal": config(truncate_by="activation", drop=3, protect=0.05),
    }[same]
    monkeypatch.setattr("kasatune.kasa.model.choose", no_measurement)
    shaken(model).add_adapter("second", second)
    for _, layer in kasa_layers(model):
        assert torch.equal(layer.kasa_tail_U["second"], layer.kasa_tail_U["default"])
        assert torch.equal(layer.kasa_tail_V["second"], layer.kasa_tail_V["default"])
        assert torch.equal(layer.protected["second"], layer.protected["default"])
        assert layer.kasa_B["second"].count_nonzero() == 0  # it is an adapter of its own
        assert float((layer.kasa_A["second"] @ layer.protected["second"].float()).detach().abs().max()) < 1e-3
    assert second.calibration_used == settings.calibration_used


def test_a_second_adapter_of_another_configuration_is_decomposed():
    model = get_peft_model(llama(), config())
    model.add_adapter("second", config(drop=2))
    assert all(layer.kasa_tail_U["second"].shape[1] == 2 for _, layer in kasa_layers(model))
