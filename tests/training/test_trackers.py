"""What experiment trackers receive: the Trainer's values, and the method's own series."""

from __future__ import annotations

import importlib.util

import pytest

from kasatune.training.callback import RunCallback
from kasatune.training.tracker_series import routing_series, sigma_series
from kasatune.training.train import train
from tests.text_toys import make_text_recipe

STEP = {"loss", "learning_rate", "grad_norm", "penalty_sigma", "penalty_orthogonality"}
EVALUATION = {"eval_loss", "sigma_norm", "sigma_norm_min", "sigma_norm_max", "sigma_effective_rank"}


def test_the_norm_and_effective_rank_of_sigma_over_the_layers():
    series = sigma_series({"a": [3.0, -4.0], "b": [1.0, 1.0, 1.0, -1.0], "c": [2.0, 0.0]})
    assert series == pytest.approx(
        {
            "sigma_norm": (5.0 + 2.0 + 2.0) / 3,
            "sigma_norm_min": 2.0,
            "sigma_norm_max": 5.0,
            "sigma_effective_rank": (1.979626 + 4.0 + 1.0) / 3,  # exp of the entropy of (3, 4) / 7
        },
        rel=1e-5,
    )
    assert sigma_series({}) == {}


def test_the_entropy_and_the_largest_load_of_routers():
    routers = {"a": {"load": [0.25, 0.75], "entropy": 0.5}, "b": {"load": [0.5, 0.5], "entropy": 0.7}}
    assert routing_series(routers) == pytest.approx({"routing_entropy": 0.6, "routing_largest_load": 0.75})
    assert routing_series({}) == {}


def test_the_callbacks_of_trackers_see_the_series_of_kasa(llama, tmp_path, monkeypatch):
    logged = []
    record = RunCallback.on_log

    def on_log(self, args, state, control, logs=None, **rest):
        logged.append((state.global_step, dict(logs)))
        return record(self, args, state, control, logs=logs, **rest)

    monkeypatch.setattr(RunCallback, "on_log", on_log)
    report_to = ["tensorboard"] if importlib.util.find_spec("tensorboard") else []
    recipe = make_text_recipe(llama, tmp_path / "data", max_steps=2, report_to=report_to)
    run = train(recipe, tmp_path / "run")
    steps = [(step, logs) for step, logs in logged if "loss" in logs]
    assert [step for step, _ in steps] == [1, 2]
    assert all(set(logs) >= STEP for _, logs in steps)
    ((step, evaluation),) = [entry for entry in logged if "eval_loss" in entry[1]]
    assert step == 2 and set(evaluation) >= EVALUATION
    assert evaluation["sigma_norm_min"] <= evaluation["sigma_norm"] <= evaluation["sigma_norm_max"]
    if not report_to:
        pytest.skip("tensorboard is not installed: its files were not checked")
    tags = _read_tensorboard(run / "tensorboard")
    assert [value for _, value in tags["train/penalty_sigma"]] == pytest.approx(
        [logs["penalty_sigma"] for _, logs in steps], rel=1e-6
    )
    assert tags["train/sigma_norm"] == [(2, pytest.approx(evaluation["sigma_norm"], rel=1e-6))]
    assert tags["eval/loss"] == [(2, pytest.approx(evaluation["eval_loss"], rel=1e-6))]


def _read_tensorboard(folder):
    """(step, value) of every scalar, by tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (path,) = folder.rglob("events.out.tfevents.*")
    events = EventAccumulator(str(path))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
