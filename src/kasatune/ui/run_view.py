"""Watch a run: state, progress, loss and score curves, log; stop and resume it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from markupsafe import Markup

from kasatune.io.locks import lock_holder
from kasatune.io.run_layout import RECIPE, REPORT
from kasatune.reports import formatting
from kasatune.reports.svg_charts import Chart, Line, thin
from kasatune.runs.find_runs import run_state
from kasatune.ui.jobs import INTERRUPTED, log_tail
from kasatune.ui.live_run import Progress, progress_of
from kasatune.ui.page import POLL_SECONDS, Page, command_box, commands, facts, log_box, notice, relative, reported
from kasatune.ui.workspace import LOGS

_STATES = {
    "starting": "Starting: loading libraries, model and rows.",
    "running": "Running. It continues when this page is closed.",
    "finished": "Finished.",
    "stopped": "Stopped before its end. It can be resumed.",
    "withdrawn": "Stopped before it began; nothing was written.",
    "diverged": "Stopped: its loss or gradient was not finite. Lower the learning rate.",
    "failed": "Failed; the log says why.",
    "damaged": "Its files cannot be read.",
}
_KINDS = {"finished": "good", "failed": "fault", "diverged": "fault", "damaged": "fault"}


@dataclass(frozen=True)
class RunView:
    """The components that watch a run.

    Attributes:
        chosen: the run that is watched.
        outputs: the components that `show` writes.
        show: the content of `outputs` for a run.
        choices: the runs to choose from.
    """

    chosen: gr.Dropdown
    outputs: list[Any]
    show: Callable[[str | None], tuple[Any, ...]]
    choices: Callable[[], list[str]]


def run_view(page: Page) -> RunView:
    """Add the components, and connect them to a clock."""
    with gr.Row(equal_height=False):
        chosen = gr.Dropdown([], label="Watch a run", scale=3, elem_id="watched")
        stop = gr.Button("Stop", elem_id="stop", min_width=90)
        resume = gr.Button("Resume", elem_id="resume", min_width=90)
    live = gr.HTML(elem_id="live")
    with gr.Accordion("Log", open=True):
        log = log_box("log")
    command = command_box("The same in a terminal: stop with Ctrl-C, resume with")
    clock = gr.Timer(POLL_SECONDS)
    outputs = [live, log, clock]

    def choices() -> list[str]:
        running = [name for name in page.jobs.started if page.jobs.is_running(name)]
        names = dict.fromkeys([*running, *(run.path for run in page.workspace.runs() if run.kind == "run")])
        return [name for name in names if (page.workspace.root / name / RECIPE).is_file() or name in page.jobs.started]

    def show(name: str | None) -> tuple[Any, ...]:
        html, text, is_over = view_of(page, name)
        return html, text, gr.Timer(active=not is_over)

    @reported
    def stop_run(name: str | None) -> tuple[Any, ...]:
        if name not in page.jobs.started:
            name = relative(page.workspace.existing(name or ""))
        page.jobs.stop(name, Path(name))
        gr.Info("Stopping after this step.")
        return show(name)

    @reported
    def resume_run(name: str | None) -> tuple[Any, ...]:
        run_dir = page.workspace.existing(name or "")
        arguments = ["train", relative(run_dir / RECIPE), "--out", relative(run_dir), "--resume"]
        from kasatune.runs.directory import read_recipe

        page.workspace.require_inside(read_recipe(page.workspace.root / run_dir))
        page.jobs.start(relative(run_dir), arguments, Path(LOGS, f"{run_dir.name}.log"))
        return commands(arguments), *show(name)

    clock.tick(show, [chosen], outputs, show_progress="hidden", queue=False)
    chosen.change(show, [chosen], outputs, show_progress="hidden")
    chosen.focus(lambda: gr.Dropdown(choices=choices()), None, [chosen], show_progress="hidden")
    stop.click(stop_run, [chosen], outputs)
    resume.click(resume_run, [chosen], [command, *outputs])
    return RunView(chosen, outputs, show, choices)


def state_of(page: Page, name: str) -> str:
    """The state of a run: that of its directory.

    "starting" before there is a directory, "withdrawn" if Ctrl-C came before there was, "failed" if its command failed.
    """
    directory = page.workspace.root / name
    exit_status = page.jobs.exit_status(name)
    if page.jobs.is_running(name):
        return "running" if lock_holder(directory) is not None else "starting"
    if exit_status not in (None, 0, *INTERRUPTED) and not (directory / REPORT).is_file():
        return "failed"
    if not (directory / RECIPE).is_file():
        return "withdrawn" if exit_status in INTERRUPTED else "failed"
    return run_state(directory)


def view_of(page: Page, name: str | None) -> tuple[Markup, str, bool]:
    """State, progress and curves of a run as HTML, the end of its log, and whether it will not change any more."""
    if not name:
        return notice("No run is chosen. Start one above, or choose one."), "", True
    if name not in page.jobs.started:
        try:
            name = relative(page.workspace.existing(name))
        except ValueError as fault:
            return notice(str(fault), "fault"), "", True
    directory = page.workspace.root / name
    state = state_of(page, name)
    events = page.live.events(directory)
    progress = progress_of(events)
    charts = Markup("").join(
        Markup('<figure class="card"><figcaption>{}</figcaption>{}</figure>').format(chart.title, chart.svg)
        for chart in live_charts(events)
    )
    html = Markup('<div class="live-run">{}{}<div class="charts">{}</div></div>').format(
        Markup('<p class="notice {}" data-state="{}"><strong>{}</strong> {}</p>').format(
            _KINDS.get(state, "note"), state, name, _STATES[state]
        ),
        _bar(progress, state) + facts(_progress_facts(progress, state)),
        charts,
    )
    job = page.jobs.started.get(name)
    log = job.log if job is not None else page.workspace.root / LOGS / f"{Path(name).name}.log"
    return html, log_tail(log), state not in ("starting", "running")


def _bar(progress: Progress, state: str) -> Markup:
    if not progress.total_steps or state == "finished":
        return Markup("")
    return Markup('<progress max="{}" value="{}" aria-label="optimizer steps"></progress>').format(
        progress.total_steps, progress.step
    )


def _progress_facts(progress: Progress, state: str) -> list[tuple[str, str]]:
    if not progress.step:
        return []
    total = f" of {progress.total_steps:,}" if progress.total_steps else ""
    speed, left = progress.tokens_per_second, progress.seconds_left
    pairs = [
        ("step", f"{progress.step:,}{total}"),
        ("epoch", f"{progress.epoch:.2f}"),
        ("training loss", formatting.score(progress.loss)),
        (
            "learning rate",
            formatting.ABSENT if progress.learning_rate is None else formatting.compact(progress.learning_rate),
        ),
        ("gradient norm", formatting.ABSENT if progress.grad_norm is None else f"{progress.grad_norm:.3g}"),
        ("tokens per second", formatting.ABSENT if speed is None else f"{speed:,.0f}"),
    ]
    if state == "running":
        pairs.append(("time left", formatting.duration(left)))
    pairs += [
        (f"{formatting.metric_title(name)}, validation", formatting.score(value))
        for name, value in list(progress.scores.items())[:4]
    ]
    return pairs


def live_charts(events: list[dict[str, Any]]) -> list[Chart]:
    """The curves of the loss and the learning rate so far."""
    steps = [event for event in events if event.get("event") == "train" and isinstance(event.get("loss"), float)]
    if len(steps) < 2:
        return []
    at = [float(event["step"]) for event in steps]
    lines = [Line("training", *thin(at, [event["loss"] for event in steps]), "s1")]
    scored = [event for event in events if event.get("event") == "evaluate"]
    points = [(float(event["step"]), (event.get("metrics") or {}).get("loss")) for event in scored]
    known = [(step, float(loss)) for step, loss in points if isinstance(loss, int | float)]
    if known:
        lines.append(Line("validation", *zip(*known, strict=True), style="s2", dots=True))
    bounds = (0.0, float("inf"))
    loss = Chart("Loss: training and, dashed, validation", "", lines, "optimizer step", whole_x=True, y_bounds=bounds)
    rates = [float(event.get("learning_rate") or 0.0) for event in steps]
    rate = Chart(
        "Learning rate", "", [Line("rate", *thin(at, rates), "s3")], "optimizer step", whole_x=True, y_bounds=bounds
    )
    return [loss, rate]
