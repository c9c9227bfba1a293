"""Options of the `training` section do what they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kasatune.errors import InputError, RecipeError
from kasatune.evaluation.evaluate import evaluate
from kasatune.evaluation.predict import predict
from kasatune.io.environment import peak_memory, reset_peak_memory
from kasatune.models.device import find_device
from kasatune.recipes.schema import to_yaml
from kasatune.training.engines.arguments import training_arguments
from kasatune.training.train import train
from tests.toys import make_recipe

DISTRIBUTED = """
import sys
from pathlib import Path
from kasatune.recipes.schema import load_recipe
from kasatune.training.train import train
train(load_recipe(sys.argv[1]), Path(sys.argv[2]))
"""


def trained(run, folder="adapter"):
    return load_file(run / folder / "adapter_model.safetensors")


def rates(run):
    lines = (run / "history.jsonl").read_text(encoding="utf-8").splitlines()
    return [event["learning_rate"] for event in map(json.loads, lines) if event["event"] == "train"]


@pytest.mark.parametrize("name", ["kasa", "lora", "full"])
@pytest.mark.parametrize(
    ("dtype", "precision"), [("float32", "bfloat16"), ("bfloat16", "float32"), ("bfloat16", "bfloat16")]
)
def test_sixteen_bits_train_and_repeat_their_metrics(name, dtype, precision, bert, tmp_path):
    recipe = make_recipe(
        bert, tmp_path, method={"name": name}, model_options={"dtype": dtype}, precision=precision, epochs=1
    )
    run = train(recipe, tmp_path / "run")
    metrics = json.loads((run / "metrics.json").read_text())["metrics"]
    assert evaluate(run)["metrics"] == metrics
    assert 0 < metrics["loss"] < 5


def test_gradient_checkpointing_changes_the_memory_and_not_the_result(bert, tmp_path):
    runs = {}
    for on in (False, True):
        recipe = make_recipe(bert, tmp_path, model_options={"dropout": 0}, gradient_checkpointing=on, epochs=1)
        runs[on] = trained(train(recipe, tmp_path / str(on)))
    for key, value in runs[False].items():
        torch.testing.assert_close(runs[True][key], value, rtol=1e-4, atol=1e-6)


def test_clipping_is_off_unless_asked_for(bert, tmp_path):
    """AdamW forgets the scale of a gradient, but not how it changes: a clip that never acts changes nothing."""
    found = {}
    for limit in (None, 1e6, 1e-3):
        recipe = make_recipe(bert, tmp_path, method={"name": "lora"}, max_grad_norm=limit)
        found[limit] = trained(train(recipe, tmp_path / str(limit)))
    key = next(key for key in found[None] if "lora_B" in key)
    assert torch.equal(found[None][key], found[1e6][key])
    assert not torch.equal(found[None][key], found[1e-3][key])


def test_the_warm_up_and_the_schedule_are_the_recipes(bert, tmp_path):
    options = {"method": {"name": "bitfit"}, "learning_rate": 1.0e-3, "epochs": 2, "train": 40}
    linear = rates(train(make_recipe(bert, tmp_path, warmup_ratio=0.2, **options), tmp_path / "linear"))
    assert linear == pytest.approx([0, 5e-4, 1e-3, 8.75e-4, 7.5e-4, 6.25e-4, 5e-4, 3.75e-4, 2.5e-4, 1.25e-4])
    constant = rates(train(make_recipe(bert, tmp_path, schedule="constant", **options), tmp_path / "constant"))
    assert constant == pytest.approx([1e-3] * 10)
    warm = rates(train(make_recipe(bert, tmp_path, warmup_ratio=1.0, **options), tmp_path / "warm"))
    assert warm == pytest.approx([step * 1e-4 for step in range(10)])


def test_weight_decay_spares_biases_and_normalisations(bert, tmp_path):
    found = {}
    for decay in (0.0, 5.0):
        recipe = make_recipe(
            bert, tmp_path, method={"name": "full"}, weight_decay=decay, max_steps=1, warmup_ratio=0.0, train=8
        )
        run = train(recipe, tmp_path / str(decay))
        found[decay] = load_file(run / "checkpoint" / "model.safetensors")
    for key, value in found[0.0].items():
        spared = key.endswith("bias") or "LayerNorm" in key
        assert torch.equal(value, found[5.0][key]) == spared, key


def test_a_device_or_precision_that_is_not_there_is_refused(bert, tmp_path):
    training = make_recipe(bert, tmp_path).training
    assert find_device(training) == torch.device("cpu")
    if not torch.cuda.is_available():
        with pytest.raises(RecipeError, match=r"training\.device: cuda"):
            find_device(training.model_copy(update={"device": "cuda"}))
        with pytest.raises(RecipeError, match="float16 needs a GPU"):
            find_device(training.model_copy(update={"device": "auto", "precision": "float16"}))


def test_a_step_is_divided_over_pieces_and_processes(bert, tmp_path, monkeypatch):
    training = make_recipe(bert, tmp_path, batch_size=8, gradient_accumulation=4).training
    assert training_arguments(training, tmp_path, torch.device("cpu")).per_device_train_batch_size == 2
    monkeypatch.setattr("transformers.TrainingArguments.world_size", 3)
    with pytest.raises(RecipeError, match=r"8 examples cannot be split into 12 equal micro-batches .*4 x 3 processes"):
        training_arguments(training, tmp_path, torch.device("cpu"))


def test_what_is_predicted_must_be_text_of_the_right_number(bert, tmp_path):
    run = train(make_recipe(bert, tmp_path, task={"max_length": 6}, epochs=1), tmp_path / "run")
    assert predict(run, []) == []
    for texts, fault in ((["good", " "], "text 2 is empty"), ([3], "not text"), ([("a", "b")], "needs one text, 2")):
        with pytest.raises(InputError, match=fault):
            predict(run, texts)
    answers = predict(run, ["good", "good bad nice fine sad"])
    assert ["truncated" in answer for answer in answers] == [False, True]
    with pytest.raises(InputError, match="no split 'test'"):
        evaluate(run, split="test")


def test_pairs_are_predicted_as_two_texts_or_one_with_a_tab(bert, tmp_path):
    for name, number in (("train", 16), ("validation", 8)):
        lines = [f"good nice,bad sad,{n % 2}\n" for n in range(number)]
        (tmp_path / f"{name}.csv").write_text("a,b,label\n" + "".join(lines))
    files = {name: str(tmp_path / f"{name}.csv") for name in ("train", "validation")}
    recipe = make_recipe(bert, tmp_path / "other", task={**files, "text": ["a", "b"]}, epochs=1)
    run = train(recipe, tmp_path / "run")
    pair, tab = predict(run, [("good", "bad"), "good\tbad"])
    assert pair["prediction"] == tab["prediction"]
    assert (pair["input"], tab["input"]) == (["good", "bad"], "good\tbad")
    with pytest.raises(InputError, match="two texts, with a tab between them, 1 were given"):
        predict(run, ["good bad"])


def test_evaluation_of_other_rows_numbers_labels_as_in_training(bert, tmp_path):
    recipe = make_recipe(bert, tmp_path, labels=5, train=96, epochs=4)
    run = train(recipe, tmp_path / "run")
    (tmp_path / "other.csv").write_text("text,label\ngood nice great,label4\nbad sad awful,label0\n")
    found = evaluate(run, data=str(tmp_path / "other.csv"))
    wanted = predict(run, ["good nice great", "bad sad awful"])
    right = [a["prediction"]["label"] == b for a, b in zip(wanted, ("label4", "label0"), strict=True)]
    assert found["metrics"]["accuracy"] == sum(right) / 2
    (tmp_path / "odd.csv").write_text("text,label\ngood nice great,label9\n")
    with pytest.raises(InputError, match="label9"):
        evaluate(run, data=str(tmp_path / "odd.csv"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kasa", "peft-kasa"])
def test_two_processes_give_what_one_gives(name, bert, tmp_path):
    recipe = make_recipe(bert, tmp_path, method={"name": name}, model_options={"dropout": 0}, gradient_accumulation=2)
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe))
    (tmp_path / "script.py").write_text(DISTRIBUTED)
    alone = trained(train(recipe, tmp_path / "one"))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    done = subprocess.run(
        [*command, str(tmp_path / "script.py"), str(tmp_path / "recipe.yaml"), str(tmp_path / "two")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    together = trained(tmp_path / "two")
    for key, value in alone.items():
        torch.testing.assert_close(together[key], value, rtol=1e-4, atol=1e-6)


def test_the_peak_of_memory_is_that_since_it_was_reset():
    reset_peak_memory()
    before = peak_memory()
    block = torch.ones(50 * 2**20)
    during = peak_memory()
    del block
    reset_peak_memory()
    assert before is not None and during is not None and peak_memory() is not None
    if Path("/proc/self/clear_refs").exists() and not torch.cuda.is_available():
        assert during - before > 150 * 2**20
        assert during - peak_memory() > 100 * 2**20
