"""The tab Compare: forecast a comparison, start it, and follow its verdicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from markupsafe import Markup

from kasatune.errors import InputError
from kasatune.io.locks import lock_holder
from kasatune.runs.find_runs import COMPARISON
from kasatune.ui.jobs import INTERRUPTED, log_tail
from kasatune.ui.page import POLL_SECONDS, Page, changes, command_box, commands, log_box, notice, relative, reported
from kasatune.ui.workspace import LOGS, RUNS


def build(page: Page, tab: gr.Tab) -> None:
    """Add the tab's components, and connect them."""
    workspace = page.workspace
    with gr.Row(equal_height=False):
        with gr.Column(min_width=320):
            recipe = gr.Dropdown(workspace.recipe_names(), value=None, label="Recipe", elem_id="compare-recipe")
            more = gr.Textbox(label="Changes, one a line", placeholder="task.data=path/to/SST-2", lines=2)
            methods = gr.Textbox("kasa,lora", label="Methods, such as kasa,kasa:convention=authors,lora")
        with gr.Column(min_width=320):
            with gr.Row():
                seeds = gr.Textbox("0,1,2", label="Seeds", min_width=110)
                trials = gr.Textbox("4", label="Search trials", min_width=110)
                workers = gr.Textbox("1", label="Runs at a time", min_width=110)
            margin = gr.Textbox(label="Margin of equivalence", placeholder="accuracy=0.01")
            name = gr.Textbox(label=f"Name, written to {RUNS}/NAME", elem_id="compare-name")
    with gr.Row():
        forecast = gr.Button("Forecast", elem_id="forecast")
        start = gr.Button("Start or continue", variant="primary", elem_id="compare-start")
        stop = gr.Button("Stop", elem_id="compare-stop", min_width=90)
    command = command_box()
    watched = gr.State("")
    state = gr.HTML(elem_id="compare-state")
    log = log_box("compare-log", "Output")
    report = gr.HTML(elem_id="compare-report")
    stamp = gr.State(0.0)
    clock = gr.Timer(POLL_SECONDS, active=False)

    def arguments(recipe: str | None, more: str, methods: str, seeds: str, trials: str, workers: str, margin: str,
                  name: str) -> tuple[list[str], str]:  # fmt: skip
        if not recipe:
            raise InputError("no recipe is chosen; choose one")
        if any(sign in methods for sign in "/\\~"):
            raise InputError(f"methods: {methods[:80]!r} received; names and settings, without paths")
        given = changes(more)
        workspace.recipe(workspace.recipe_text(recipe), given)
        out = relative(Path(RUNS, workspace.name(name)))
        line = ["compare", recipe, *given, f"--methods={methods}", f"--seeds={seeds}", f"--trials={trials}"]
        line += [f"--workers={workers}", *([f"--margin={margin}"] if margin.strip() else []), f"--out={out}"]
        return line, out

    @reported
    def show_forecast(*values: Any) -> tuple[Any, ...]:
        line, out = arguments(*values)
        name = f"forecast of {out}"
        log = Path(LOGS, f"{Path(out).name}-forecast.log")
        (workspace.root / log).unlink(missing_ok=True)
        page.jobs.start(name, [*line, "--plan"], log)
        return commands([*line, "--plan"]), name, 0.0

    @reported
    def start_comparison(*values: Any) -> tuple[Any, ...]:
        line, out = arguments(*values)
        page.jobs.start(out, line, Path(LOGS, f"{Path(out).name}.log"))
        return commands(line), out, 0.0

    @reported
    def stop_comparison(name: str) -> None:
        page.jobs.stop(name, Path(name))
        gr.Info("Stopping; finished runs are kept.")

    def show(name: str, shown: float) -> tuple[Any, ...]:
        if not name:
            return gr.skip(), gr.skip(), gr.skip(), gr.skip(), gr.Timer(active=False)
        job = page.jobs.started.get(name)
        output = log_tail(job.log if job is not None else workspace.root / LOGS / f"{Path(name).name}.log")
        if name.startswith("forecast"):
            return notice(_forecast_state(page, name)), output, "", 0.0, gr.Timer(active=page.jobs.is_running(name))
        directory = workspace.root / name
        file = directory / COMPARISON
        changed = file.stat().st_mtime if file.is_file() else 0.0
        running = page.jobs.is_running(name) or lock_holder(directory) is not None
        status = page.jobs.exit_status(name)
        html = notice(*_state(running, status))
        if changed == shown:
            return html, output, gr.skip(), gr.skip(), gr.Timer(active=running)
        return html, output, page.report(name) if changed else Markup(""), changed, gr.Timer(active=running)

    def recipes() -> gr.Dropdown:
        return gr.Dropdown(choices=workspace.recipe_names())

    values = [recipe, more, methods, seeds, trials, workers, margin, name]
    outputs = [state, log, report, stamp, clock]
    tab.select(recipes, None, [recipe], show_progress="hidden")
    for button, handler in ((forecast, show_forecast), (start, start_comparison)):
        button.click(handler, values, [command, watched, stamp]).success(
            show, [watched, stamp], outputs, show_progress="hidden"
        )
    stop.click(stop_comparison, [watched], None)
    clock.tick(show, [watched, stamp], outputs, show_progress="hidden", queue=False)


def _state(running: bool, status: int | None) -> tuple[str, str]:
    """Sentence and kind of a notice for a comparison whose command has this exit status, or runs."""
    if running:
        return "Running. It continues when this page is closed; finished runs are never repeated.", "note"
    if status in INTERRUPTED:
        return 'Stopped. "Start or continue" runs what is missing; finished runs are not repeated.', "note"
    return ("Finished.", "good") if status in (None, 0) else ("Failed; the output says why.", "fault")


def _forecast_state(page: Page, name: str) -> str:
    if page.jobs.is_running(name):
        return "Timing a few steps ..."
    return "Forecast:" if page.jobs.exit_status(name) == 0 else "The comparison would fail; the output says why."
