"""Every number of a run can be traced and made again, and a model of the hub stays the commit that it was."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from kasatune.adapter_tools.verify import verify
from kasatune.cli.main import run as kasatune
from kasatune.cli.run_summary import write_pages
from kasatune.errors import OutputError
from kasatune.evaluation.evaluate import evaluate
from kasatune.recipes.schema import Recipe
from kasatune.runs import directory
from kasatune.runs.directory import read_recipe
from kasatune.runs.metrics import read_metrics
from kasatune.runs.provenance import pinned, pinned_as_started, recipe_sha256
from kasatune.training.train import train
from kasatune.weights.fingerprint import sampled_parameters_sha256
from tests.toys import make_bert, make_recipe

FIRST, SECOND = "1" * 40, "2" * 40


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The cache of a hub that cannot be reached, with two commits of one model; `main` is the first."""
    cache = tmp_path / "hub"
    model = cache / "models--org--tiny"
    for commit, scale in ((FIRST, 0.2), (SECOND, 0.4)):
        make_bert(model / "snapshots" / commit, initializer_range=scale)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(FIRST)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(cache))
    return model


def checks(run_dir):
    return {check.name: check.passed for check in verify(run_dir)}


def test_a_model_of_the_hub_is_pinned_to_the_commit_that_was_trained(hub, tmp_path):
    run_dir = train(make_recipe("org/tiny", tmp_path, epochs=1), tmp_path / "run")
    metrics = read_metrics(run_dir)
    assert metrics["model"]["revision"] == FIRST
    assert read_recipe(run_dir).model.revision == FIRST
    (hub / "refs" / "main").write_text(SECOND)
    again = evaluate(run_dir)
    assert again["metrics"] == metrics["metrics"]
    assert again["model"] == metrics["model"]
    train(make_recipe("org/tiny", tmp_path, epochs=1), run_dir, resume=True)  # the same recipe still
    other = read_metrics(train(make_recipe("org/tiny", tmp_path, epochs=1), tmp_path / "other"))
    assert other["model"]["revision"] == SECOND
    assert other["model"]["fingerprint"] != metrics["model"]["fingerprint"]


def test_rows_of_the_hub_are_pinned_to_the_commit_that_was_trained_on(data_hub, bert, tmp_path):
    def put(word, label):
        rows = [{"sentence1": f"{word} {n}", "sentence2": "so it is", "label": (n + label) % 2} for n in range(8)]
        return data_hub.put_splits("nyu-mll/glue", {"train": rows, "validation": rows}, "rte")

    def recipe(**task):
        task = {"name": "glue/rte", "max_length": 32, **task}
        return Recipe.model_validate({**make_recipe(bert, tmp_path, max_steps=1).model_dump(), "task": task})

    first = put("first", 0)
    run_dir = train(recipe(), tmp_path / "run")
    metrics = read_metrics(run_dir)
    assert read_recipe(run_dir).task.revision == first
    assert metrics["data_source"] == f"nyu-mll/glue@{first}"
    second = put("second", 1)
    again = evaluate(run_dir)
    assert (again["metrics"], again["data_sha256"]) == (metrics["metrics"], metrics["data_sha256"])
    train(recipe(), run_dir, resume=True)  # the same recipe still
    with pytest.raises(OutputError, match=r"task\.revision"):
        train(recipe(revision=second), run_dir, resume=True)
    newest = train(recipe(), tmp_path / "newest")
    assert read_recipe(newest).task.revision == second
    assert read_metrics(newest)["data_sha256"] != metrics["data_sha256"]


def test_a_run_goes_on_with_the_rows_that_it_was_begun_with(data_hub, tmp_path):
    task = {"name": "instruction", "train": "hub:a/b:train", "validation": "hub:a/b:test", "max_length": 32}
    asked = Recipe.model_validate({"model": {"name": "m"}, "task": task, "output": str(tmp_path / "run")})
    pins = {"train": "hub:a/b@1:train", "validation": "hub:a/b@1:test"}
    begun = pinned(asked, None, pins)
    assert (begun.task.train, begun.task.validation) == tuple(pins.values())
    directory.begin(tmp_path / "run", begun, resume=False)
    directory.check_output(tmp_path / "run", asked, resume=True, overwrite=False)
    assert pinned_as_started(asked, tmp_path / "run") == begun
    elsewhere = pinned(asked, None, {"train": "hub:a/b@2:train"})
    with pytest.raises(OutputError, match=r"task\.train: 'hub:a/b@1:train' then, 'hub:a/b@2:train' now"):
        directory.check_output(tmp_path / "run", elsewhere, resume=True, overwrite=False)


@pytest.fixture
def finished(bert, tmp_path):
    return train(make_recipe(bert, tmp_path, epochs=1, seed=3), tmp_path / "run")


def changed(run_dir, **values):
    metrics = read_metrics(run_dir)
    (run_dir / "metrics.json").write_text(json.dumps({**metrics, **values}))


def test_metrics_name_what_the_numbers_come_from(finished):
    metrics = read_metrics(finished)
    assert metrics["seed"] == 3
    assert metrics["recipe_sha256"] == recipe_sha256(read_recipe(finished))
    assert metrics["machine"]["threads"] == torch.get_num_threads()
    assert {"data_sha256", "data_source", "versions", "deterministic"} <= metrics.keys()
    assert len(metrics["model"]["fingerprint"]) == 64


def test_verify_makes_the_numbers_again(finished):
    found = checks(finished)
    assert {"recipe", "rows", "base model", "scores"} <= found.keys()
    assert not [name for name, passed in found.items() if passed is False]
    metrics = read_metrics(finished)
    changed(finished, metrics={**metrics["metrics"], "accuracy": 0.987})
    assert [name for name, passed in checks(finished).items() if passed is False] == ["scores"]
    assert kasatune(["verify", str(finished)]) == 1


def test_verify_finds_another_recipe_other_rows_and_another_base(finished):
    changed(finished, recipe_sha256="x", data_sha256="y", model={"fingerprint": "z"})
    found = [name for name, passed in checks(finished).items() if passed is False]
    assert found == ["recipe", "rows", "base model"]


def test_verify_says_where_it_cannot_look(finished, tmp_path):
    (tmp_path / "train.csv").unlink()
    assert checks(finished)["scores"] is None


def test_another_machine_may_differ_a_little(finished):
    metrics = read_metrics(finished)
    near = {name: value + 1e-4 for name, value in metrics["metrics"].items()}
    changed(finished, metrics=near, machine={"processor": "another"})
    assert checks(finished)["scores"]
    changed(finished, metrics=near, machine=metrics["machine"])
    assert checks(finished)["scores"] is False


def test_a_run_without_an_adapter_is_verified_too(bert, tmp_path):
    run_dir = train(make_recipe(bert, tmp_path, epochs=1, method={"name": "head"}), tmp_path / "run")
    shutil.rmtree(run_dir / "adapter", ignore_errors=True)
    found = checks(run_dir)
    assert found["scores"]


def test_a_fingerprint_tells_models_apart():
    torch.manual_seed(0)
    one = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.Linear(30, 2))
    before = sampled_parameters_sha256(one)
    assert sampled_parameters_sha256(one, ["1"]) != before
    with torch.no_grad():
        one[0].weight[-1, -1] += 1
    assert sampled_parameters_sha256(one) != before


def test_the_report_names_them_too(finished):
    write_pages(finished)
    page = (finished / "report.html").read_text(encoding="utf-8")
    metrics = read_metrics(finished)
    for value in (metrics["model"]["fingerprint"], metrics["recipe_sha256"], metrics["machine"]["processor"]):
        assert f"<td>{value}</td>" in page
    assert "changes the last digits" in page
