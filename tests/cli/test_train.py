"""From a recipe to scores, predictions and an exported adapter, through the real entry."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.cli.test_user_errors import GOOD


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder in which GOOD has been trained with `--out runs/first`, and what the command printed."""
    import contextlib
    import io

    from kasatune.cli.main import run
    from tests.toys import make_bert, rows, write_csv

    folder = tmp_path_factory.mktemp("work")
    make_bert(folder / "model")
    write_csv(folder / "train.csv", rows(24, 2, seed=1))
    write_csv(folder / "validation.csv", rows(10, 2, seed=2))
    (folder / "good.yaml").write_text(GOOD)
    out, err = io.StringIO(), io.StringIO()
    before = Path.cwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = run(["train", "good.yaml", "training.seed=3", "--out", "runs/first"])
    finally:
        os.chdir(before)
    assert status == 0, err.getvalue()
    return folder, out.getvalue(), err.getvalue()


@pytest.fixture
def work(trained, monkeypatch):
    monkeypatch.chdir(trained[0])
    return trained[0]


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_run_directory_holds_what_is_promised(trained):
    folder, out, err = trained
    run = folder / "runs" / "first"
    assert files(run) >= {
        "recipe.yaml",
        "metrics.json",
        "history.jsonl",
        "predictions.json",
        "spectrum.json",
        "report.html",
        "README.md",
        *(f"adapter/{name}" for name in ("adapter_config.json", "adapter_model.safetensors", "README.md")),
        *(f"kasa/{name}" for name in ("adapter_config.json", "adapter_model.safetensors")),
    }
    recipe = (run / "recipe.yaml").read_text()
    assert "seed: 3" in recipe
    assert "output: runs/first" in recipe
    assert not list(folder.rglob("*.unfinished"))
    assert "accuracy" in out
    assert "runs/first/report.html" in out
    assert ", cpu: 3 steps" in err
    assert "step 3/3" in err


def test_evaluate_repeats_the_scores_exactly(kasatune, work):
    done = kasatune("evaluate", "runs/first", "--json")
    assert done.status == 0
    before, again = json.loads((work / "runs/first/metrics.json").read_text()), json.loads(done.out)
    assert again["metrics"] == before["metrics"]
    assert again.keys() == before.keys()
    shown = kasatune("evaluate", "runs/first", "--split", "validation").out
    assert f"{before['metrics']['accuracy']:.4f}" in shown


def test_predict_gives_labels_and_scores(kasatune, work):
    done = kasatune("predict", "runs/first", "--text", "good fine", "--text", "bad", "--json")
    rows = json.loads(done.out)
    assert done.status == 0
    assert [row["input"] for row in rows] == ["good fine", "bad"]
    for row in rows:
        assert row["prediction"]["label"] == max(row["prediction"]["scores"], key=row["prediction"]["scores"].get)
    (work / "texts.txt").write_bytes(b"good fine\r\nbad\n")
    assert json.loads(kasatune("predict", "runs/first", "--file", "texts.txt", "--json").out) == rows
    plain = kasatune("predict", "runs/first", "--file", "texts.txt").out
    assert plain.splitlines()[1].endswith("good fine")


def test_predict_refuses_what_the_task_cannot_take(kasatune, work):
    done = kasatune("predict", "runs/first", "--text", " ")
    assert (done.status, done.out) == (2, "")
    assert "empty" in done.err


def test_export_writes_an_adapter_that_stock_peft_loads(kasatune, work, tmp_path):
    done = kasatune("export", "runs/first", "--to", "lora", "--out", tmp_path / "lora")
    assert (done.status, done.err) == (0, "")
    assert json.loads((tmp_path / "lora" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    again = kasatune("export", "runs/first", "--out", tmp_path / "lora")
    assert again.status == 2
    assert kasatune("export", "runs/first", "--to", "gguff", "--out", tmp_path / "x").status == 2
    assert not (tmp_path / "x").exists()


def test_an_occupied_output_is_refused_before_anything_is_loaded(kasatune, work, monkeypatch):
    monkeypatch.setattr("kasatune.training.train.find_pretrained", lambda section: pytest.fail("loaded"))
    before = {path: path.stat().st_mtime_ns for path in (work / "runs").rglob("*")}
    done = kasatune("train", "good.yaml", "--out", "runs/first")
    assert (done.status, done.out) == (2, "")
    assert "--resume or --overwrite" in done.err
    assert {path: path.stat().st_mtime_ns for path in (work / "runs").rglob("*")} == before


def test_only_the_first_process_writes_and_shows(kasatune, work, monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("kasatune.training.train.train", lambda recipe, out, **_: out)
    monkeypatch.setattr("kasatune.reports.run_page.write_report", lambda run_dir: pytest.fail("written"))
    assert kasatune("train", "good.yaml", "--out", tmp_path / "run") == (0, "", "")


def test_a_finished_run_is_resumed_at_once(kasatune, work):
    done = kasatune("train", "good.yaml", "training.seed=3", "--out", "runs/first", "--resume")
    assert done.status == 0
    assert "already finished" in done.err


def test_overwrite_replaces_a_run_and_leaves_the_rest(kasatune, work):
    assert kasatune("train", "good.yaml", "training.max_steps=1", "--out", "runs/second").status == 0
    (work / "runs/second/notes.txt").write_text("mine")
    done = kasatune("train", "good.yaml", "training.max_steps=2", "--out", "runs/second", "--overwrite")
    assert done.status == 0
    assert "max_steps: 2" in (work / "runs/second/recipe.yaml").read_text()
    assert (work / "runs/second/notes.txt").read_text() == "mine"
    assert "training.epochs is not used" in done.err


@pytest.mark.parametrize(
    ("started", "words"), [(True, "holds the progress so far; continue"), (False, "nothing was written")]
)
def test_ctrl_c_says_what_was_kept(kasatune, work, monkeypatch, tmp_path, started, words):
    def train(recipe, out, **_):
        if started:
            out.mkdir()
            (out / "recipe.yaml").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr("kasatune.training.train.train", train)
    done = kasatune("train", "good.yaml", "--out", tmp_path / "run")
    assert (done.status, done.out) == (130, "")
    assert words in done.err
    assert "Traceback" not in done.err


def test_a_plan_as_json_is_json_alone(kasatune, work):
    done = kasatune("plan", "good.yaml", "--json")
    plan = json.loads(done.out)
    assert (done.status, done.err) == (0, "")
    assert plan["steps"] == 3
    assert plan["trainable_parameters"] == 4 * (2 * (32 + 32) + 2)
    assert plan["problems"] == []


def test_a_plan_that_would_fail_shows_the_plan_and_every_reason(kasatune, work):
    done = kasatune("plan", "good.yaml", "method.r=32", "task.train=model/vocab.csv")
    assert done.status == 2
    assert "no such file" in done.err
    done = kasatune("plan", "good.yaml", "method.r=32", "task.label=none", "--json")
    assert done.status == 2
    assert len(json.loads(done.out)["problems"]) == 2
    assert done.err.count("\n  - ") == 2


def test_a_full_disk_is_status_1(kasatune, work, monkeypatch, tmp_path):
    import errno

    def write_report(run_dir):
        raise OSError(errno.ENOSPC, "No space left on device", str(run_dir / "report.html"))

    monkeypatch.setattr("kasatune.training.train.train", lambda recipe, out, **_: out)
    monkeypatch.setattr("kasatune.reports.run_page.write_report", write_report)
    done = kasatune("train", "good.yaml", "--out", tmp_path / "run")
    assert (done.status, done.out) == (1, "")
    assert "No space left on device; free some space" in done.err
