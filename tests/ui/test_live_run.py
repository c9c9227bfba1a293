"""Progress of a run from its history, the page's commands, and the rows that two classifiers disagree on."""

from __future__ import annotations

import json
import signal
import sys
import time

import pytest

from kasatune.errors import InputError
from kasatune.io.locks import directory_lock, holder_here, lock_holder
from kasatune.ui.jobs import Job, Jobs, command_line, log_tail
from kasatune.ui.live_run import LiveRuns, progress_of
from kasatune.ui.loaded_models import disagreements
from kasatune.ui.workspace import Workspace


def step(number: int, **values) -> dict:
    return {"event": "train", "step": number, "epoch": number / 4, "loss": 1.0 / number, **values}


def test_speed_and_time_left_are_those_of_the_last_steps():
    # Ten slow steps of 10 s, then 30 of 1 s with 50 tokens each: 60 of 100 steps are left.
    seconds = [10.0 * n for n in range(1, 11)] + [100.0 + n for n in range(1, 31)]
    events = [step(n, seconds=s, tokens=50, total_steps=100) for n, s in enumerate(seconds, 1)]
    progress = progress_of(events)
    assert (progress.step, progress.total_steps) == (40, 100)
    assert progress.tokens_per_second == pytest.approx(50)
    assert progress.seconds_left == pytest.approx(60)


def test_a_history_of_an_earlier_version_has_no_speed():
    progress = progress_of([step(1), step(2), {"event": "evaluate", "step": 2, "metrics": {"loss": 0.5, "f1": None}}])
    assert (progress.step, progress.loss, progress.scores) == (2, 0.5, {"loss": 0.5})
    assert progress.tokens_per_second is progress.seconds_left is progress.total_steps is None


def test_a_history_is_read_from_where_it_ended(tmp_path):
    live, path = LiveRuns(), tmp_path / "history.jsonl"
    assert live.events(tmp_path) == []
    path.write_text(json.dumps(step(1)) + "\n" + '{"event": "tr')
    assert [event["step"] for event in live.events(tmp_path)] == [1]
    with path.open("a") as file:
        file.write('ain", "step": 2}\nnonsense\n[1]\n{"step": "x"}\n')
    assert [event["step"] for event in live.events(tmp_path)] == [1, 2]
    resumed = tmp_path / "resumed"
    resumed.write_text("".join(json.dumps(step(n)) + "\n" for n in (1, 3, 4, 5)))
    resumed.replace(path)  # a resumed run writes its history again
    assert [event["step"] for event in live.events(tmp_path)] == [1, 3, 4, 5]


def test_a_command_can_be_pasted_into_a_shell():
    assert command_line(["train", "a b.yaml", "task.text=$(x)"]) == "kasatune train 'a b.yaml' 'task.text=$(x)'"


@pytest.mark.process
def test_a_command_runs_with_its_log_and_one_at_a_time(tmp_path, monkeypatch):
    # In the place of Python, a program that prints its arguments and waits to be interrupted.
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\nexec {sys.executable} -c 'import sys,time; print(sys.argv[1:], flush=True)\n"
                       "try: time.sleep(60)\nexcept KeyboardInterrupt: sys.exit(130)' \"$@\"\n")  # fmt: skip
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    jobs = Jobs(tmp_path)
    job = jobs.start("runs/a", ["train", "x.yaml"], tmp_path / "logs" / "a.log")
    with pytest.raises(InputError, match="runs/a is running"):
        jobs.start("runs/a", ["train", "x.yaml"], tmp_path / "logs" / "a.log")
    while "kasatune" not in log_tail(job.log).partition("\n")[2]:
        time.sleep(0.05)
    assert log_tail(job.log).splitlines() == ["$ kasatune train x.yaml", "['-m', 'kasatune', 'train', 'x.yaml']"]
    jobs.stop("runs/a", tmp_path / "runs" / "a")
    assert job.process.wait(30) == 130
    with pytest.raises(InputError, match="not being written"):
        jobs.stop("runs/a", tmp_path / "runs" / "a")


def test_the_holder_of_a_lock_is_known_until_it_is_released(tmp_path):
    assert lock_holder(tmp_path) is None
    with directory_lock(tmp_path):
        assert lock_holder(tmp_path).startswith("process ")
        assert holder_here(tmp_path) is not None
    (tmp_path / ".lock").write_text("process 1 on here")  # left by nobody
    assert lock_holder(tmp_path) is None


@pytest.mark.parametrize(
    ("status", "state"),
    [(130, "withdrawn"), (-signal.SIGINT, "withdrawn"), (0, "failed"), (2, "failed"), (-signal.SIGKILL, "failed")],
)
def test_a_run_that_is_stopped_before_it_has_a_directory_has_not_failed(tmp_path, status, state):
    pytest.importorskip("gradio", reason="needs the extra kasatune[ui]")
    from kasatune.ui.page import Page
    from kasatune.ui.run_view import state_of, view_of

    page = Page(Workspace.open(tmp_path), Jobs(tmp_path))
    ended = type("Ended", (), {"poll": lambda self: status})()
    page.jobs.started["runs/a"] = Job(("train", "a.yaml"), tmp_path / "logs" / "a.log", ended)
    assert state_of(page, "runs/a") == state
    html, _, is_over = view_of(page, "runs/a")
    assert f'data-state="{state}"' in html
    assert is_over


def test_a_log_has_no_control_characters(tmp_path):
    (tmp_path / "log").write_bytes(b"10 %\r20 %\n\x1b[31mred\x07\xff\n")
    assert log_tail(tmp_path / "log") == "10 %\n20 %\n\\x1b[31mred\\x07\ufffd"
    (tmp_path / "log").write_text("line\n" * 100_000)
    assert len(log_tail(tmp_path / "log")) < 20_000
    assert log_tail(tmp_path / "missing") == ""


def classifier(folder, predictions, labels=(0, 1, 0, 1), names=("no", "yes")):
    folder.mkdir()
    metrics = {"kind": "classification", "split": "validation", "label_names": list(names), "data_sha256": "x"}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "predictions.json").write_text(json.dumps({"labels": list(labels), "predictions": list(predictions)}))
    (folder / "recipe.yaml").write_text(
        "{model: {name: m}, task: {name: classification, train: a.csv, validation: 0.5, text: t, label: l}}"
    )


def test_the_rows_that_one_classifier_gets_right_and_the_other_wrong(tmp_path):
    classifier(tmp_path / "a", [0, 1, 1, 0])
    classifier(tmp_path / "b", [1, 1, 0, 0])
    difference = disagreements(tmp_path, "a", "b", lambda recipe: None)
    assert difference.counts == (1, 1, 4)
    assert difference.rows == [["1", "", "no", "no", "yes"], ["3", "", "no", "yes", "no"]]


@pytest.mark.parametrize(
    "changes", [{"labels": (0, 1, 1, 1)}, {"names": ("no", "maybe")}, {"predictions": (0, 1, 7, 0)}, {"labels": (0,)}]
)
def test_classifiers_of_different_rows_are_not_compared(tmp_path, changes):
    classifier(tmp_path / "a", [0, 1, 1, 0])
    classifier(tmp_path / "b", **{"predictions": [1, 1, 0, 0], **changes})
    with pytest.raises(InputError):
        disagreements(tmp_path, "a", "b", lambda recipe: None)
