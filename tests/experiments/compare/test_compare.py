"""A comparison executes every run once, keeps it, and resumes after any interruption."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kasatune.data.tasks import load_task
from kasatune.data.tokenize import encode
from kasatune.errors import InputError, OutputError
from kasatune.experiments.compare.compare import collect_finished
from kasatune.experiments.compare.comparison_file import write_comparison
from kasatune.experiments.compare.process_cache import ProcessCache, process_cache
from kasatune.experiments.compare.run_store import locked_comparison
from kasatune.experiments.compare.spec import Search
from kasatune.methods.lora import Lora
from kasatune.training.train import train
from tests.experiments.compare.toys import folders, make_toy_spec, run, scores

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def done(bert, tmp_path_factory):
    """A finished comparison: (spec, directory, content of comparison.json, messages)."""
    folder = tmp_path_factory.mktemp("compared")
    spec = make_toy_spec(bert, folder)
    return spec, folder / "out", *run(spec, folder / "out")


def test_every_run_is_executed_and_kept(done):
    _, out, found, lines = done
    # Two methods with two trials and two seeds each, and the fitted head with two seeds.
    assert len(lines) == len(folders(out)) == found["progress"]["planned"] == 10
    assert found["complete"] and found["progress"]["failed"] == 0
    (task,) = found["tasks"]
    assert [entry["method"] for entry in task["results"]] == ["kasa", "lora", "head"]
    assert all(entry["n"] == 2 for entry in task["results"])
    assert not list((out / "runs").glob(".*")), "no unfinished folder remains"
    assert not list((out / "runs").glob("*/adapter")), "weights are not kept"


def test_a_reported_run_equals_train_on_all_rows_at_the_last_epoch(done, tmp_path):
    spec, _, found, _ = done
    entry = found["tasks"][0]["results"][1]
    recipe = spec.recipe(spec.tasks[0], spec.variants[1], 1, entry["search"]["chosen"])
    metrics = json.loads((train(recipe, tmp_path / "alone") / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["metrics"] == entry["runs"][1]["metrics"] == metrics["last"]["metrics"]
    assert recipe.training.learning_rate in (1e-3, 1e-1)


def test_the_search_never_sees_the_reported_rows(done):
    spec, out, found, _ = done
    reported = set(ProcessCache().data(spec.tasks[0].recipe).splits["validation"].first)
    trials = [trial["run"] for entry in found["tasks"][0]["results"][:2] for trial in entry["search"]["trials"]]
    assert len(trials) == 4
    for run_id in trials:
        about = json.loads((out / "runs" / run_id / "run.json").read_text(encoding="utf-8"))
        assert about["identity"]["held_out"] is not None
        answers = json.loads((out / "runs" / run_id / "predictions.json").read_text(encoding="utf-8"))
        assert len(answers["labels"]) == 5 != len(reported)
    rows = ProcessCache().search_data(spec.tasks[0].recipe).splits
    training = set(ProcessCache().data(spec.tasks[0].recipe).splits["train"].first)
    assert {*rows["train"].first, *rows["validation"].first} <= training


def test_repeating_the_command_executes_nothing_and_reports_the_same(done):
    spec, out, found, _ = done
    before = folders(out)
    again, lines = run(spec, out)
    assert lines == [] and folders(out) == before
    assert {**again, "progress": None} == {**found, "progress": None}


def test_more_seeds_and_methods_execute_only_the_new_runs(done, bert, tmp_path):
    spec, out, _, _ = done
    shutil.copytree(out, tmp_path / "out")
    more = make_toy_spec(bert, tmp_path, "kasa,lora,bitfit", (0, 1, 2))
    assert more.tasks[0].recipe.task.train != spec.tasks[0].recipe.task.train, "the same rows in another folder"
    _, lines = run(more, tmp_path / "out")
    assert len(lines) == 2 + 3 + 3  # bitfit's trials and seeds, and seed 2 of the three others
    assert all("bitfit" in line or "seed 2" in line for line in lines)


def test_only_a_lost_run_is_executed_again(done, tmp_path):
    spec, out, found, _ = done
    shutil.copytree(out, tmp_path / "out")
    lost = found["tasks"][0]["results"][0]["runs"][1]["run"]
    shutil.rmtree(tmp_path / "out" / "runs" / lost)
    again, lines = run(spec, tmp_path / "out")
    assert len(lines) == 1 and "kasa on toy, seed 1" in lines[0]
    assert scores(again) == scores(found)


def test_a_directory_with_the_index_of_an_earlier_version_resumes(done, tmp_path):
    spec, out, found, _ = done
    shutil.copytree(out, tmp_path / "out")
    (tmp_path / "out" / "index.sqlite").write_bytes(b"SQLite format 3\0" + b"rows that no longer match" * 100)
    again, lines = run(spec, tmp_path / "out")
    assert lines == [] and scores(again) == scores(found)
    assert not (tmp_path / "out" / "index.sqlite").exists(), "nothing reads it any more"


def test_a_read_only_comparison_is_refused(done, monkeypatch):
    spec, out, _, _ = done
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    monkeypatch.setattr("kasatune.runs.directory.os.access", lambda *_: False)
    with pytest.raises(OutputError, match="not a directory that you can write to"):
        run(spec, out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_second_process_is_refused(done, tmp_path):
    spec, out, _, _ = done
    shutil.copytree(out, tmp_path / "out")
    with locked_comparison(tmp_path / "out"), pytest.raises(OutputError, match="is working on this comparison"):
        run(spec, tmp_path / "out")


@pytest.mark.parametrize("what", ["a file", "something else"])
def test_an_output_that_is_not_a_comparison_is_left_untouched(what, bert, tmp_path):
    out = tmp_path / "out"
    if what == "a file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / "mine.txt").write_text("mine")
    with pytest.raises(OutputError):
        run(make_toy_spec(bert, tmp_path), out)
    assert out.is_file() or [path.name for path in out.iterdir()] == ["mine.txt"]


def test_infeasible_methods_are_refused_before_the_first_run(bert, tmp_path):
    spec = make_toy_spec(bert, tmp_path, "kasa:r=400,lora:target_modules=nothing,lora")
    with pytest.raises(InputError) as caught:
        run(spec, tmp_path / "out")
    assert "kasa:r=400 on toy" in str(caught.value) and "lora:target_modules=nothing on toy" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_failed_run_is_recorded_and_stops_nothing_else(bert, tmp_path, monkeypatch):
    spec = make_toy_spec(bert, tmp_path, trials=1)
    original = Lora.save

    def fail(self, model, run_dir, base_name):
        raise RuntimeError("the method is broken")

    monkeypatch.setattr(Lora, "save", fail)
    found, lines = run(spec, tmp_path / "out")
    kasa, lora, head = found["tasks"][0]["results"]
    assert (kasa["n"], lora["n"], head["n"]) == (2, 0, 2)
    assert [one["error"] for one in lora["runs"]] == ["RuntimeError: the method is broken"] * 2
    assert found["progress"]["failed"] == 2 and sum("failed: RuntimeError" in line for line in lines) == 2
    # A failure that may be the machine's fault is retried by the next command, once per command.
    monkeypatch.setattr(Lora, "save", original)
    again, lines = run(spec, tmp_path / "out")
    assert len(lines) == 2 and again["tasks"][0]["results"][1]["n"] == 2


def test_a_run_that_diverged_is_a_result(bert, tmp_path):
    spec = make_toy_spec(bert, tmp_path, "lora", trials=1, training={"learning_rate": 1e30, "epochs": 2})
    found, _ = run(spec, tmp_path / "out")
    assert all("diverged" in one["error"] for one in found["tasks"][0]["results"][0]["runs"])
    assert run(spec, tmp_path / "out")[1] == []


def test_no_run_is_reported_if_every_trial_fails(bert, tmp_path):
    spec = make_toy_spec(bert, tmp_path, "lora", search=Search("grid", 2, 1e30, 1e31), training={"epochs": 2})
    found, _ = run(spec, tmp_path / "out")
    lora = found["tasks"][0]["results"][0]
    assert lora["runs"] == [] and lora["search"]["chosen"] is None and found["complete"]
    assert found["progress"]["failed"] == 2 * 3, "three seeds of two trials"


def test_the_paper_protocol_chooses_on_the_reported_rows(bert, tmp_path):
    spec = make_toy_spec(bert, tmp_path, "lora", protocol="paper", training={"epochs": 3})
    found, _ = run(spec, tmp_path / "out")
    lora = found["tasks"][0]["results"][0]
    assert lora["mean"] == pytest.approx(lora["best_epoch_mean"])
    for run_id in [trial["run"] for trial in lora["search"]["trials"]]:
        assert json.loads((tmp_path / "out" / "runs" / run_id / "run.json").read_text())["identity"]["held_out"] is None


def test_an_optuna_search_resumes(bert, tmp_path):
    pytest.importorskip("optuna", reason="needs kasatune[search]")
    spec = make_toy_spec(bert, tmp_path, "lora", search=Search("optuna", 3))
    found, _ = run(spec, tmp_path / "out")
    last = found["tasks"][0]["results"][0]["search"]["trials"][-1]["run"]
    shutil.rmtree(tmp_path / "out" / "runs" / last)
    again, lines = run(spec, tmp_path / "out")
    assert len(lines) == 1 and scores(again) == scores(found)


def test_keep_adapters_keeps_the_weights(bert, tmp_path):
    spec = make_toy_spec(bert, tmp_path, "lora", (0,), trials=1)
    found, _ = run(spec, tmp_path / "out", keep_adapters=True)
    one = found["tasks"][0]["results"][0]["runs"][0]["run"]
    assert (tmp_path / "out" / "runs" / one / "adapter" / "adapter_model.safetensors").is_file()


def test_an_interim_report_counts_the_finished_runs(done, tmp_path):
    spec, out, found, _ = done
    shutil.copytree(out, tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "runs" / found["tasks"][0]["results"][0]["search"]["trials"][0]["run"])
    shutil.rmtree(tmp_path / "out" / "runs" / found["tasks"][0]["results"][1]["runs"][0]["run"])
    with locked_comparison(tmp_path / "out"):  # as while another process executes it
        part = collect_finished(spec, tmp_path / "out")
    assert not part["complete"]
    assert [entry["n"] for entry in part["tasks"][0]["results"]] == [0, 1, 2]


def test_interim_results_are_given_while_runs_execute_and_change_nothing(done, tmp_path, monkeypatch):
    monkeypatch.setattr("kasatune.experiments.compare.compare.INTERIM_SECONDS", 0.0)
    monkeypatch.setattr("kasatune.experiments.compare.compare.INTERIM_SHARE", 1.0)
    spec, out, found, _ = done
    shutil.copytree(out, tmp_path / "out")
    kasa = found["tasks"][0]["results"][0]
    for lost in (kasa["search"]["trials"][0]["run"], kasa["runs"][1]["run"]):
        shutil.rmtree(tmp_path / "out" / "runs" / lost)
    parts = []
    again, lines = run(spec, tmp_path / "out", interim=parts.append)
    assert len(lines) == 2
    before, after = (part["progress"]["there"] for part in parts)
    assert before < after == found["progress"]["planned"]
    assert not parts[0]["complete"]
    assert scores(again) == scores(found)
    page = write_comparison(parts[0], tmp_path / "out", running=True)
    assert 'http-equiv="refresh"' in (tmp_path / "out" / "report.html").read_text()
    assert page["answer"].startswith("Not finished")
    write_comparison(again, tmp_path / "out")
    assert 'http-equiv="refresh"' not in (tmp_path / "out" / "report.html").read_text()


def test_rows_are_loaded_and_tokenized_once(done, bert, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        "kasatune.experiments.compare.process_cache.load_task", lambda task: calls.append("rows") or load_task(task)
    )
    monkeypatch.setattr("kasatune.evaluation.task_model.encode", lambda *a: calls.append("tokens") or encode(*a))
    process_cache.cache_clear()
    run(make_toy_spec(bert, tmp_path, "lora,bitfit"), tmp_path / "out")
    assert calls.count("rows") == 1
    assert calls.count("tokens") == 4, "two splits of all rows, two of the search's"


_DRIVER = """
import sys
from pathlib import Path
from tests.experiments.compare.toys import make_toy_spec, run
if __name__ == "__main__":
    bert, folder = Path(sys.argv[1]), Path(sys.argv[2])
    spec = make_toy_spec(bert, folder)
    run(spec, folder / "out", workers=int(sys.argv[3]))
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_comparison_resumes(workers, done, bert, tmp_path):
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
    time.sleep(1.5 if workers > 1 else 0)  # the workers notice that their parent is gone
    kept = folders(tmp_path / "out")
    assert 4 <= len(kept) < 10
    again, lines = run(make_toy_spec(bert, tmp_path), tmp_path / "out")
    after = folders(tmp_path / "out")
    assert len(lines) == 10 - len(kept), "nothing is done twice"
    assert {run_id: after[run_id] for run_id in kept} == kept, "nothing is lost"
    assert not list((tmp_path / "out" / "runs").glob(".*"))
    assert scores(again) == scores(found)


def test_worker_processes_give_the_scores_of_a_sequential_comparison(done, bert, tmp_path):
    _, _, found, _ = done
    several, lines = run(make_toy_spec(bert, tmp_path), tmp_path / "out", workers=2)
    assert len(lines) == 10 and scores(several) == scores(found)


def test_collecting_finished_runs_gives_the_same_results(done):
    spec, out, found, _ = done
    assert collect_finished(spec, out)["tasks"] == found["tasks"]


def test_a_trial_is_the_mean_of_its_seeds_and_the_search_moves_on_at_an_edge(bert, tmp_path):
    search = Search("grid", 2, seeds=2, extensions=1)
    spec = make_toy_spec(bert, tmp_path, "lora", (0,), search=search, training={"max_steps": 1})
    found, lines = run(spec, tmp_path / "out")
    search = found["tasks"][0]["results"][0]["search"]
    assert len(search["trials"]) == 3, "the better of two rates is at an edge"
    assert len(lines) == 3 * 2 + 2 == found["progress"]["planned"] and found["complete"]
    rates = [trial["settings"]["learning_rate"] for trial in search["trials"]]
    assert rates[2] in (1e-5, 10.0)
    for trial in search["trials"]:
        assert [one["seed"] for one in trial["runs"]] == [2**32 - 1, 2**32 - 2]
        if trial["error"] is None:
            assert trial["score"] == pytest.approx(sum(one["score"] for one in trial["runs"]) / 2)
    assert run(spec, tmp_path / "out")[1] == []


def test_forgetting_is_an_endpoint_measured_after_every_epoch(done):
    kasa, lora, head = done[2]["tasks"][0]["results"]
    assert lora["forgetting_curve"] == [[1.0, pytest.approx(lora["endpoints"]["forgetting"]["mean"], rel=1e-6)]]
    difference = kasa["endpoints"]["forgetting"]["difference"]
    mine, theirs = kasa["endpoints"]["forgetting"]["values"], lora["endpoints"]["forgetting"]["values"]
    assert difference["mean"] == pytest.approx(sum(a - b for a, b in zip(mine, theirs, strict=True)) / 2)
    assert difference["rows"] >= 10 and difference["verdict"] != "not tested"
    assert "forgetting_matched" not in kasa["endpoints"], "one evaluation does not tell"
    assert head["endpoints"]["forgetting"]["mean"] == 0, "the body is frozen"
    assert lora["costs"]["retention"]["tokens"] == 320
