"""The report of a run in progress: written rarely, and no longer reloading itself at the end."""

from __future__ import annotations

from kasatune.cli.live_report import SECONDS, LiveReport
from kasatune.io.progress import NullProgress
from tests.reports import sample_runs


def test_the_page_is_written_every_quarter_of_a_minute_and_at_the_end(tmp_path, monkeypatch):
    now = 1000.0
    monkeypatch.setattr("kasatune.cli.live_report.time.monotonic", lambda: now)
    run_dir = sample_runs.write_run(tmp_path / "run", events=sample_runs.history(epochs=1))
    (run_dir / "metrics.json").unlink()
    page = run_dir / "report.html"
    live = LiveReport(NullProgress(), run_dir)
    live.step(1, 0.1, 0.5, 1e-3)
    assert not page.exists()
    now += SECONDS
    live.step(2, 0.2, 0.5, 1e-3)
    assert 'http-equiv="refresh"' in page.read_text()
    page.write_text("as before")
    live.step(3, 0.3, 0.5, 1e-3)
    assert page.read_text() == "as before"
    live.finish()
    assert 'http-equiv="refresh"' not in page.read_text()


def test_a_short_run_writes_no_page_of_its_own(tmp_path):
    run_dir = sample_runs.write_run(tmp_path / "run")
    live = LiveReport(NullProgress(), run_dir)
    live.step(1, 0.1, 0.5, 1e-3)
    live.finish()
    assert not (run_dir / "report.html").exists()


def test_a_page_that_cannot_be_written_stops_no_run(tmp_path, monkeypatch):
    now = 1000.0
    monkeypatch.setattr("kasatune.cli.live_report.time.monotonic", lambda: now)
    run_dir = sample_runs.write_run(tmp_path / "run")
    (run_dir / "history.jsonl").write_text("damaged\ndamaged\n")
    live = LiveReport(NullProgress(), run_dir)
    now += SECONDS
    live.step(1, 0.1, 0.5, 1e-3)
    assert not (run_dir / "report.html").exists()
