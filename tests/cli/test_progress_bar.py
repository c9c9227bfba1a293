from __future__ import annotations

import io

import pytest

from kasatune.cli.progress_bar import LineProgress, LiveProgress, make_progress
from kasatune.io.progress import ProgressReporter


def run(display: ProgressReporter, steps: int, title: str = "kasa on rte") -> None:
    display.start(steps, title)
    for step in range(1, steps + 1):
        display.step(step, step / steps, 0.5, 1e-4)
    display.evaluated(1.0, {"accuracy": 0.75, "loss": 0.6})
    display.message("2 rows were cut")
    display.finish()


@pytest.mark.parametrize(("steps", "lines"), [(3, 3), (20, 20), (75, 19), (10_000, 20)])
def test_lines_are_few_and_end_with_the_last_step(capsys, steps, lines):
    run(LineProgress(), steps)
    captured = capsys.readouterr()
    assert captured.out == ""
    shown = captured.err.splitlines()
    assert shown[0] == f"kasa on rte: {steps:,} steps"
    assert [line for line in shown if line.startswith("step")][-1].startswith(f"step {steps}/{steps}  epoch 1.00")
    assert sum(line.startswith("step") for line in shown) == lines
    assert shown[-2:] == ["epoch 1: accuracy 0.7500, loss 0.6000", "2 rows were cut"]


def test_lines_leave_out_what_is_not_known(capsys):
    display = LineProgress()
    display.start(1, "head")
    display.step(1, 0.0, None, None)
    assert "loss" not in capsys.readouterr().err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_terminal(monkeypatch, **environment: str) -> Terminal:
    """Make standard error a terminal of 100 columns and return what it shows."""
    for name, value in {"COLUMNS": "100", "TERM": "xterm", **environment}.items():
        monkeypatch.setenv(name, value)
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    assert isinstance(make_progress(), LiveProgress)
    return screen


def test_a_terminal_has_a_bar_with_the_state_beside_it(monkeypatch):
    screen = on_terminal(monkeypatch)
    run(make_progress(), 4)
    shown = screen.getvalue()
    assert "epoch 1: accuracy 0.7500, loss 0.6000" in shown
    assert "2 rows were cut" in shown
    assert "4/4" in shown
    assert "epoch 1.0  loss 0.5000  accuracy 0.7500" in shown
    assert "\x1b[3" in shown


def test_a_live_display_serves_run_after_run_and_messages_in_between(monkeypatch):
    screen = on_terminal(monkeypatch)
    display = make_progress()
    display.message("before [any] run")
    run(display, 2, "first")
    display.message("between")
    run(display, 3, "second")
    display.finish()
    shown = screen.getvalue()
    for word in ("before [any] run", "first", "between", "second", "3/3"):
        assert word in shown


def test_no_colour_where_none_is_wanted(monkeypatch):
    screen = on_terminal(monkeypatch, NO_COLOR="1")
    run(make_progress(), 2)
    assert "2/2" in screen.getvalue()
    assert "\x1b[3" not in screen.getvalue()


def test_elsewhere_there_are_lines(capsys):
    assert isinstance(make_progress(), LineProgress)


def decompose(display: ProgressReporter, clock: list[float], seconds: float, layers: int) -> None:
    """Tell of `layers` layers that take `seconds` each."""
    display.progress("decomposing", 0, layers)
    for done in range(1, layers + 1):
        clock[0] += seconds
        display.progress("decomposing", done, layers)


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("kasatune.cli.progress_bar.time.monotonic", lambda: now[0])
    return now


def test_quick_work_is_not_shown(capsys, clock, monkeypatch):
    decompose(LineProgress(), clock, 0.01, 50)
    assert capsys.readouterr().err == ""
    screen = on_terminal(monkeypatch)
    display = make_progress()
    decompose(display, clock, 0.01, 50)
    display.finish()
    assert "decomposing" not in screen.getvalue()


def test_slow_work_is_told_in_lines_far_apart(capsys, clock):
    decompose(LineProgress(), clock, 2.0, 20)
    assert capsys.readouterr().err.splitlines() == [
        "decomposing: 1 of 20 layers  0:00:38 left",
        "decomposing: 7 of 20 layers  0:00:26 left",
        "decomposing: 13 of 20 layers  0:00:14 left",
        "decomposing: 19 of 20 layers  0:00:02 left",
        "decomposing: 20 layers done in 0:00:40",
    ]


def test_slow_work_has_a_bar_that_goes_before_training_begins(clock, monkeypatch):
    screen = on_terminal(monkeypatch)
    display = make_progress()
    decompose(display, clock, 2.0, 3)
    run(display, 4)
    shown = screen.getvalue()
    assert "decomposing" in shown and "layers" in shown
    assert "4/4" in shown
