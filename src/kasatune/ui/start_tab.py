"""The tab Start: from a dropped file or a preset to a checked recipe, and a run to watch, stop and resume."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import gradio as gr

from kasatune.data.readers.tables import column_names
from kasatune.data.tasks.table import TASKS
from kasatune.errors import InputError
from kasatune.io.atomic import write_text
from kasatune.methods.table import DEFAULT_METHOD, METHODS
from kasatune.recipes.catalogue import built_in
from kasatune.recipes.starter import starter_recipe
from kasatune.ui.page import Page, changes, command_box, commands, notice, relative, reported
from kasatune.ui.recipe_check import check
from kasatune.ui.run_view import RunView, run_view
from kasatune.ui.workspace import LOGS, RECIPES, RUNS, TABLES

OWN_TASKS = [name for name, info in TASKS.items() if info.reads_own_files and info.module.startswith("kasatune.")]
_CHATS = ("messages", "conversations", "instruction")
_GENERATION = ("prompt", "completion")
_FIELDS = (
    ("method.r", "rank r"),
    ("training.epochs", "epochs"),
    ("training.learning_rate", "learning rate"),
    ("training.batch_size", "batch size"),
    ("training.seed", "seed"),
)


def guess_task(columns: list[str]) -> str:
    """The task that rows with these columns are probably for."""
    names = {name.lower() for name in columns}
    if names & set(_CHATS):
        return "instruction"
    if names >= set(_GENERATION):
        return "text-generation"
    return "regression" if "score" in names and "label" not in names else "classification"


def build(page: Page) -> RunView:
    """Add the tab's components, and connect them."""
    workspace = page.workspace
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=320):
            gr.Markdown("### 1. Rows and model")
            upload = gr.File(
                label=f"Drop a table: {', '.join(TABLES)}", file_types=list(TABLES), height=170, elem_id="upload"
            )
            uploaded = gr.State("")
            upload_note = gr.HTML(padding=False)
            task = gr.Dropdown(OWN_TASKS, value="classification", label="Task", elem_id="task")
            models = workspace.models()
            model = gr.Dropdown(
                models,
                value=models[0] if models else None,
                allow_custom_value=True,
                label="Base model: hub id, folder, GGUF file or package:NAME",
                elem_id="model",
            )
            make = gr.Button("Make a recipe", elem_id="make")
            preset = gr.Dropdown(
                workspace.recipe_names(), value=None, label="or open a preset or a recipe of yours", elem_id="preset"
            )
        with gr.Column(scale=1, min_width=320):
            gr.Markdown("### 2. Recipe")
            recipe = gr.Code(
                label="Recipe", language="yaml", lines=12, max_lines=20, elem_id="recipe", buttons=["copy"]
            )
            opened = gr.State("")
            with gr.Accordion("Change settings", open=False):
                method = gr.Dropdown(["", *METHODS], value="", label=f"method (the recipe's; {DEFAULT_METHOD} if none)")
                with gr.Row():
                    fields = [gr.Textbox(label=label, placeholder="recipe's", min_width=110) for _, label in _FIELDS]
                more = gr.Textbox(label="Further changes, one a line", placeholder="task.max_length=256", lines=2)
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=320):
            gr.Markdown("### 3. Check and start")
            name = gr.Textbox(label=f"Name of the run, written to {RUNS}/NAME", elem_id="name")
            with gr.Row():
                check_button = gr.Button("Check", elem_id="check")
                start = gr.Button("Start", variant="primary", elem_id="start")
            command = command_box()
        with gr.Column(scale=1, min_width=320):
            summary = gr.HTML(elem_id="plan")
            rows = gr.Dataframe(
                label="First training rows", interactive=False, wrap=True, visible=False, max_height=360, elem_id="rows"
            )
    view = run_view(page)
    settings = [method, *fields, more]

    @reported
    def take_file(path: str | None) -> tuple[Any, ...]:
        if path is None:
            return "", "", gr.skip(), gr.skip()
        source = Path(path)
        if source.stat().st_size > page.largest_upload:
            raise InputError(f"{source.name} is larger than {page.largest_upload >> 20} MiB; see --max-upload")
        stored = workspace.store_upload(source, source.name)
        source.unlink(missing_ok=True)
        columns = column_names(workspace.root / stored)
        shown = ", ".join(columns[:20])
        suggested = f"{stored.stem}-{datetime.now():%m%d-%H%M}"
        return relative(stored), notice(f"{stored}: columns {shown}"), guess_task(columns), suggested

    @reported
    def make_recipe(stored: str, task: str, model: str | None) -> tuple[str, str]:
        if not stored:
            raise InputError("no file is uploaded; drop one first, or open a preset")
        if not model:
            raise InputError("no base model is given; choose or write one")
        return starter_recipe(task, model, relative(workspace.existing(stored))), ""

    @reported
    def open_preset(chosen: str | None) -> tuple[Any, ...]:
        if not chosen:
            return gr.skip(), gr.skip(), gr.skip()
        suggested = f"{Path(chosen).stem}-{datetime.now():%m%d-%H%M}"
        return workspace.recipe_text(chosen), chosen, suggested

    def overrides(values: tuple[str, ...]) -> list[str]:
        method, *numbers, more = (value or "" for value in values)
        given = [f"method.name={method}"] if method else []
        given += [f"{key}={value.strip()}" for (key, _), value in zip(_FIELDS, numbers, strict=True) if value.strip()]
        return [*given, *changes(more)]

    def recipe_argument(text: str, opened: str, name: str) -> tuple[str, bool]:
        """What commands call the recipe, and whether it has to be written: not if it is an unchanged file."""
        if opened and workspace.recipe_text(opened) == text:
            return opened, False
        stem = workspace.name(name)
        for number in range(1, 1000):
            path = Path(RECIPES, f"{stem}{f'-{number}' if number > 1 else ''}.yaml")
            full = workspace.root / path
            if not full.exists() and not full.is_symlink():
                return relative(path), True
            if full.is_file() and full.read_text(encoding="utf-8", errors="replace") == text:
                return relative(path), False
        raise InputError(f"{RECIPES} holds too many recipes called {stem}; give another name")

    @reported
    def check_recipe(text: str, opened: str, name: str, *values: str) -> tuple[Any, ...]:
        given = overrides(values)
        out = workspace.new(RUNS, name)
        checked_recipe = workspace.recipe(text, given).model_copy(update={"output": relative(out)})
        with page.model_work():
            checked = check(checked_recipe)
        argument, _ = recipe_argument(text, opened, name)
        table = gr.Dataframe(headers=checked.head, value=checked.rows, visible=bool(checked.rows))
        lines = commands(["plan", argument, *given], ["train", argument, *given, "--out", relative(out)])
        return checked.summary, table, lines

    @reported
    def start_run(text: str, opened: str, name: str, *values: str) -> tuple[Any, ...]:
        given = overrides(values)
        out = workspace.new(RUNS, name)
        workspace.recipe(text, given)
        argument, is_new = recipe_argument(text, opened, name)
        if argument in built_in() and (workspace.root / argument).exists():
            raise InputError(f"{argument} is also a file here; open that one, or rename it")
        if is_new:
            (workspace.root / RECIPES).mkdir(exist_ok=True)
            write_text(workspace.root / argument, text)
        arguments = ["train", argument, *given, "--out", relative(out)]
        page.jobs.start(relative(out), arguments, Path(LOGS, f"{name.strip()}.log"))
        return commands(arguments), gr.Dropdown(choices=view.choices(), value=relative(out))

    upload.upload(take_file, [upload], [uploaded, upload_note, task, name])
    upload.clear(lambda: ("", ""), None, [uploaded, upload_note])
    make.click(make_recipe, [uploaded, task, model], [recipe, opened])
    preset.input(open_preset, [preset], [recipe, opened, name])
    inputs = [recipe, opened, name, *settings]
    check_button.click(check_recipe, inputs, [summary, rows, command])
    start.click(start_run, inputs, [command, view.chosen]).success(view.show, [view.chosen], view.outputs)
    return view
