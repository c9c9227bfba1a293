"""The tab Runs: a sortable table of all runs and comparisons, and the reports of two side by side."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import gradio as gr

from kasatune.errors import InputError
from kasatune.reports import formatting
from kasatune.runs.find_runs import RunSummary
from kasatune.ui.page import Page, command_box, commands, notice, reported

HEAD = ["name", "state", "task", "method", "score", "value", "loss", "minutes", "model", "changed"]
_TYPES: list[Any] = ["str", "str", "str", "str", "str", "number", "number", "number", "str", "str"]


def row_of(run: RunSummary) -> list[Any]:
    """The cells of a run under `HEAD`."""
    return [
        run.path,
        run.state if run.kind == "run" else f"{run.state} comparison",
        run.task,
        run.method,
        formatting.metric_title(run.score_name) if run.score_name else "",
        None if run.score is None else round(run.score, 4),
        None if run.loss is None else round(run.loss, 4),
        None if run.seconds is None else round(run.seconds / 60, 1),
        run.model,
        f"{datetime.fromtimestamp(run.changed):%Y-%m-%d %H:%M}",
    ]


def build(page: Page, tab: gr.Tab) -> None:
    """Add the tab's components, and connect them."""
    gr.Markdown("Click a column to sort, a row to open its report; a second row opens beside it.")
    refresh = gr.Button("Read the folder again", elem_id="refresh", size="sm")
    table = gr.Dataframe(
        headers=HEAD, datatype=_TYPES, interactive=False, elem_id="runs", max_height=420, show_search="search"
    )
    with gr.Row():
        left = gr.Dropdown([], label="Report", elem_id="left")
        right = gr.Dropdown([], label="Report beside it", elem_id="right")
        close = gr.Button("Close both", min_width=90, size="sm")
    with gr.Row(equal_height=False, elem_classes="reports"):
        first = gr.HTML(elem_id="first-report", padding=False)
        second = gr.HTML(elem_id="second-report", visible=False, padding=False)
    command = command_box()

    @reported
    def read(left: str | None, right: str | None) -> tuple[Any, ...]:
        runs = page.workspace.runs()
        names = ["", *(run.path for run in runs)]
        shown = [name if name in names else "" for name in (left, right)]
        dropdowns = [gr.Dropdown(choices=names, value=name) for name in shown]
        return [row_of(run) for run in runs], *dropdowns, commands(["list", "runs", "."])

    @reported
    def choose(event: gr.SelectData, left: str | None, right: str | None) -> tuple[Any, Any]:
        name = event.row_value[0]
        return (gr.skip(), name) if left and left != name else (name, gr.skip())

    def report(name: str | None) -> gr.HTML:
        if not name:
            return gr.HTML(value="", visible=False)
        try:
            return gr.HTML(value=page.report(name), visible=True)
        except InputError as fault:
            return gr.HTML(value=notice(str(fault), "fault"), visible=True)

    everything = [table, left, right, command]
    tab.select(read, [left, right], everything, show_progress="hidden")
    refresh.click(read, [left, right], everything)
    table.select(choose, [left, right], [left, right], show_progress="hidden")
    left.change(report, [left], [first], show_progress="minimal")
    right.change(report, [right], [second], show_progress="minimal")
    close.click(lambda: ("", ""), None, [left, right])
