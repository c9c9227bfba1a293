"""A comparison does every run once, keeps it, and goes on after whatever stopped it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kasatune.data.tasks import load_task
from kasatune.data.tokenize import encode
from kasatune.errors import InputError, OutputError
from kasatune.experiments.compare.compare import gather_finished
from kasatune.experiments.compare.process_cache import Shared
from kasatune.experiments.compare.run_store import open_index
from kasatune.experiments.compare.spec import Search
from kasatune.methods.lora import Lora
from kasatune.training.train import train
from tests.experiments.compare.toys import folders, index_of, make_toy_request, run, scores

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def done(bert, tmp_path_factory):
    """A finished comparison: request, directory, comparison.json, lines told."""
    folder = tmp_path_factory.mktemp("compared")
    request = make_toy_request(bert, folder)
    return request, folder / "out", *run(request, folder / "out")


def test_every_run_is_done_and_kept(done):
    _, out, found, lines = done
    # Two methods with two trials and two seeds each, and the fitted head with two seeds.
    assert len(lines) == len(folders(out)) == found["progress"]["planned"] == 10
    assert found["complete"] and found["progress"]["failed"] == 0
    (task,) = found["tasks"]
    assert [entry["method"] for entry in task["results"]] == ["kasa", "lora", "head"]
    assert all(entry["n"] == 2 for entry in task["results"])
    assert not list((out / "runs").glob(".*")), "nothing unfinished is left"
    assert not list((out / "runs").glob("*/adapter")), "weights are not kept"


def test_a_reported_run_is_what_train_gives_on_all_rows_at_the_last_epoch(done, tmp_path):
    request, _, found, _ = done
    entry = found["tasks"][0]["results"][1]
    recipe = request.recipe(request.tasks[0], request.variants[1], 1, entry["search"]["chosen"])
    metrics = json.loads((train(recipe, tmp_path / "alone") / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["metrics"] == entry["runs"][1]["metrics"] == metrics["last"]["metrics"]
    assert recipe.training.learning_rate in (1e-3, 1e-1)


def test_the_search_never_sees_the_reported_rows(done):
    request, out, found, _ = done
    reported = set(Shared().data(request.tasks[0].recipe).splits["validation"].first)
    trials = [trial["run"] for entry in found["tasks"][0]["results"][:2] for trial in entry["search"]["trials"]]
    assert len(trials) == 4
    for run_id in trials:
        about = json.loads((out / "runs" / run_id / "run.json").read_text(encoding="utf-8"))
        assert about["identity"]["held_out"] is not None
        answers = json.loads((out / "runs" / run_id / "predictions.json").read_text(encoding="utf-8"))
        assert len(answers["labels"]) == 5 != len(reported)
    rows = Shared().search_data(request.tasks[0].recipe).splits
    training = set(Shared().data(request.tasks[0].recipe).splits["train"].first)
    assert {*rows["train"].first, *rows["validation"].first} <= training


def test_the_same_command_again_does_nothing_and_says_the_same(done):
    request, out, found, _ = done
    before = folders(out)
    again, lines = run(request, out)
    assert lines == [] and folders(out) == before
    assert {**again, "progress": None} == {**found, "progress": None}


def test_further_seeds_and_methods_do_only_what_is_new(done, bert, tmp_path):
    request, out, _, _ = done
    shutil.copytree(out, tmp_path / "out")
    more = make_toy_request(bert, tmp_path, "kasa,lora,bitfit", (0, 1, 2))
    assert more.tasks[0].recipe.task.train != request.tasks[0].recipe.task.train, "the same rows in another folder"
    _, lines = run(more, tmp_path / "out")
    assert len(lines) == 2 + 3 + 3  # bitfit's trials and seeds, and seed 2 of the three others
    assert all("bitfit" in line or "seed 2" in line for line in lines)


def test_a_run_that_was_lost_is_done_again_and_no_other(done, tmp_path):
    request, out, found, _ = done
    shutil.copytree(out, tmp_path / "out")
    lost = found["tasks"][0]["results"][0]["runs"][1]["run"]
    shutil.rmtree(tmp_path / "out" / "runs" / lost)
    again, lines = run(request, tmp_path / "out")
    assert len(lines) == 1 and "kasa on toy, seed 1" in lines[0]
    assert scores(again) == scores(found)


@pytest.mark.parametrize("damage", ["missing", "garbage", "truncated", "other table"])
def test_an_index_that_is_lost_is_made_again_from_the_folders(damage, done, tmp_path):
    _, out, _, _ = done
    shutil.copytree(out, tmp_path / "out")
    path, before = tmp_path / "out" / "index.sqlite", index_of(out)
    if damage == "missing":
        path.unlink()
    elif damage == "garbage":
        path.write_bytes(b"not a database" * 1000)
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:5000])
    else:
        path.unlink()
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE runs (id TEXT)")
        connection.close()
    with open_index(tmp_path / "out"):
        pass
    assert index_of(tmp_path / "out") == before and len(before) == 10


def test_a_comparison_that_can_no_longer_be_written_is_refused(done, monkeypatch):
    request, out, _, _ = done
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    monkeypatch.setattr("kasatune.runs.directory.os.access", lambda *_: False)
    with pytest.raises(OutputError, match="not a directory that you can write to"):
        run(request, out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_two_processes_do_not_work_on_one_comparison(done, tmp_path):
    request, out, _, _ = done
    shutil.copytree(out, tmp_path / "out")
    with open_index(tmp_path / "out"), pytest.raises(OutputError, match="another process is at work"):
        run(request, tmp_path / "out")


@pytest.mark.parametrize("what", ["a file", "something else"])
def test_what_is_no_comparison_is_not_touched(what, bert, tmp_path):
    out = tmp_path / "out"
    if what == "a file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / "mine.txt").write_text("mine")
    with pytest.raises(OutputError):
        run(make_toy_request(bert, tmp_path), out)
    assert out.is_file() or [path.name for path in out.iterdir()] == ["mine.txt"]


def test_what_cannot_work_is_refused_before_the_first_run(bert, tmp_path):
    request = make_toy_request(bert, tmp_path, "kasa:r=400,lora:target_modules=nothing,lora")
    with pytest.raises(InputError) as caught:
        run(request, tmp_path / "out")
    assert "kasa:r=400 on toy" in str(caught.value) and "lora:target_modules=nothing on toy" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_failed_run_is_recorded_and_stops_nothing_else(bert, tmp_path, monkeypatch):
    request = make_toy_request(bert, tmp_path, trials=1)
    original = Lora.save

    def fail(self, model, run_dir, base_name):
        raise RuntimeError("the method is broken")

    monkeypatch.setattr(Lora, "save", fail)
    found, lines = run(request, tmp_path / "out")
    kasa, lora, head = found["tasks"][0]["results"]
    assert (kasa["n"], lora["n"], head["n"]) == (2, 0, 2)
    assert [one["error"] for one in lora["runs"]] == ["RuntimeError: the method is broken"] * 2
    assert found["progress"]["failed"] == 2 and sum("failed: RuntimeError" in line for line in lines) == 2
    # A fault that may have been the machine's is tried again by the next command, and once only by each.
    monkeypatch.setattr(Lora, "save", original)
    again, lines = run(request, tmp_path / "out")
    assert len(lines) == 2 and again["tasks"][0]["results"][1]["n"] == 2


def test_a_run_that_diverged_is_a_result(bert, tmp_path):
    request = make_toy_request(bert, tmp_path, "lora", trials=1, training={"learning_rate": 1e30, "epochs": 2})
    found, _ = run(request, tmp_path / "out")
    assert all("diverged" in one["error"] for one in found["tasks"][0]["results"][0]["runs"])
    assert run(request, tmp_path / "out")[1] == []


def test_a_search_whose_trials_all_fail_reports_no_run(bert, tmp_path):
    request = make_toy_request(bert, tmp_path, "lora", search=Search("grid", 2, 1e30, 1e31), training={"epochs": 2})
    found, _ = run(request, tmp_path / "out")
    lora = found["tasks"][0]["results"][0]
    assert lora["runs"] == [] and lora["search"]["chosen"] is None and found["complete"]
    assert found["progress"]["failed"] == 2


def test_the_papers_protocol_chooses_on_the_reported_rows(bert, tmp_path):
    request = make_toy_request(bert, tmp_path, "lora", protocol="paper", training={"epochs": 3})
    found, _ = run(request, tmp_path / "out")
    lora = found["tasks"][0]["results"][0]
    assert lora["mean"] == pytest.approx(lora["best_epoch_mean"])
    for run_id in [trial["run"] for trial in lora["search"]["trials"]]:
        assert json.loads((tmp_path / "out" / "runs" / run_id / "run.json").read_text())["identity"]["held_out"] is None


def test_optuna_goes_on_where_it_was(bert, tmp_path):
    pytest.importorskip("optuna", reason="needs kasatune[search]")
    request = make_toy_request(bert, tmp_path, "lora", search=Search("optuna", 3))
    found, _ = run(request, tmp_path / "out")
    last = found["tasks"][0]["results"][0]["search"]["trials"][-1]["run"]
    shutil.rmtree(tmp_path / "out" / "runs" / last)
    again, lines = run(request, tmp_path / "out")
    assert len(lines) == 1 and scores(again) == scores(found)


def test_kept_adapters_are_kept(bert, tmp_path):
    request = make_toy_request(bert, tmp_path, "lora", (0,), trials=1)
    found, _ = run(request, tmp_path / "out", keep_adapters=True)
    one = found["tasks"][0]["results"][0]["runs"][0]["run"]
    assert (tmp_path / "out" / "runs" / one / "adapter" / "adapter_model.safetensors").is_file()


def test_the_report_of_a_comparison_that_is_under_way_counts_what_is_there(done, tmp_path):
    request, out, found, _ = done
    shutil.copytree(out, tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "runs" / found["tasks"][0]["results"][0]["search"]["trials"][0]["run"])
    shutil.rmtree(tmp_path / "out" / "runs" / found["tasks"][0]["results"][1]["runs"][0]["run"])
    with open_index(tmp_path / "out"):  # as the process at work has it
        part = gather_finished(request, tmp_path / "out")
    assert not part["complete"]
    assert [entry["n"] for entry in part["tasks"][0]["results"]] == [0, 1, 2]


def test_rows_and_tokens_are_made_once(done, bert, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        "kasatune.experiments.compare.process_cache.load_task", lambda task: calls.append("rows") or load_task(task)
    )
    monkeypatch.setattr("kasatune.evaluation.task_model.encode", lambda *a: calls.append("tokens") or encode(*a))
    monkeypatch.setattr("kasatune.experiments.compare.executors._SHARED", None)
    run(make_toy_request(bert, tmp_path, "lora,bitfit"), tmp_path / "out")
    assert calls.count("rows") == 1
    assert calls.count("tokens") == 4, "two splits of all rows, two of the search's"


_DRIVER = """
import sys
from pathlib import Path
from tests.experiments.compare.toys import make_toy_request, run
if __name__ == "__main__":
    bert, folder = Path(sys.argv[1]), Path(sys.argv[2])
    request = make_toy_request(bert, folder)
    run(request, folder / "out", workers=int(sys.argv[3]))
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_comparison_killed_at_any_moment_goes_on(workers, done, bert, tmp_path):
    _, _, found, _ = done
    script = tmp_path / "driver.py"
    script.write_text(_DRIVER, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(bert), str(tmp_path), str(workers)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        limit = time.monotonic() + 240
        while len(folders(tmp_path / "out")) < 4 and time.monotonic() < limit and process.poll() is None:
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    time.sleep(1.5 if workers > 1 else 0)  # the workers notice that they are alone
    kept = folders(tmp_path / "out")
    assert 4 <= len(kept) < 10
    again, lines = run(make_toy_request(bert, tmp_path), tmp_path / "out")
    after = folders(tmp_path / "out")
    assert len(lines) == 10 - len(kept), "nothing is done twice"
    assert {run_id: after[run_id] for run_id in kept} == kept, "nothing is lost"
    assert not list((tmp_path / "out" / "runs").glob(".*"))
    assert scores(again) == scores(found)


def test_processes_give_the_scores_of_one(done, bert, tmp_path):
    _, _, found, _ = done
    several, lines = run(make_toy_request(bert, tmp_path), tmp_path / "out", workers=2)
    assert len(lines) == 10 and scores(several) == scores(found)


def test_a_report_from_the_folders_says_what_the_comparison_said(done):
    request, out, found, _ = done
    assert gather_finished(request, out)["tasks"] == found["tasks"]
