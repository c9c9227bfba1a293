"""The tab Export: convert or merge the adapter of a run, with its certificate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gradio as gr
from markupsafe import Markup

from kasatune.errors import InputError
from kasatune.io.run_layout import ADAPTER, NATIVE, RECIPE
from kasatune.runs.directory import read_recipe
from kasatune.ui.jobs import log_tail
from kasatune.ui.page import POLL_SECONDS, Page, command_box, commands, facts, notice, relative, reported
from kasatune.ui.workspace import ADAPTERS, LOGS

CERTIFICATE = "certificate.json"
_FORMATS = [
    ("LoRA: PEFT, vLLM and other servers", "lora"),
    ("GGUF: llama.cpp", "gguf"),
    ("Ollama: GGUF with a Modelfile", "ollama"),
    ("Merged: a plain transformers checkpoint", "merged"),
    ("KaSA: to continue training", "kasa"),
    ("KaSA as PEFT saves it", "peft-kasa"),
]


def build(page: Page, tab: gr.Tab) -> None:
    """Add the tab's components, and connect them."""
    workspace = page.workspace
    with gr.Row():
        chosen = gr.Dropdown([], label="Run", elem_id="export-run", scale=2, min_width=220)
        kind = gr.Dropdown(_FORMATS, value="lora", label="Format", elem_id="format", scale=2, min_width=260)
        rank = gr.Textbox(label="Smaller rank (LoRA only, optional)", placeholder="8", min_width=110)
        name = gr.Textbox(label=f"Name, written to {ADAPTERS}/NAME", elem_id="export-name", scale=2)
    start = gr.Button("Export", variant="primary", elem_id="export")
    command = command_box()
    watched = gr.State("")
    result = gr.HTML(elem_id="export-result")
    log = gr.Textbox(label="Output", elem_id="export-log", lines=3, max_lines=10, interactive=False)
    clock = gr.Timer(POLL_SECONDS, active=False)
    certificate = gr.Code(
        label=CERTIFICATE, language="json", interactive=False, visible=False, max_lines=20, elem_id="certificate"
    )

    def choices() -> gr.Dropdown:
        root = workspace.root
        runs = [run.path for run in workspace.runs() if run.kind == "run"]
        return gr.Dropdown(choices=[run for run in runs if any((root / run / part).is_dir() for part in _WEIGHTS)])

    def suggest(run: str | None, kind: str) -> Any:
        return f"{Path(run).name}-{kind}" if run else gr.skip()

    @reported
    def export(run: str | None, kind: str, rank: str, name: str) -> tuple[Any, ...]:
        directory = workspace.existing(run or "")
        if (workspace.root / directory / RECIPE).is_file():
            workspace.require_inside(read_recipe(workspace.root / directory))
        out = workspace.new(ADAPTERS, name)
        line = ["merge"] if kind == "merged" else ["export"]
        line += [relative(directory), *([] if kind == "merged" else ["--to", kind]), "--out", relative(out)]
        if (rank or "").strip():
            if not rank.strip().isdecimal() or kind != "lora":
                raise InputError(f"rank: {rank[:20]!r} received with {kind}; a whole number, and only with lora")
            line += ["--rank", rank.strip()]
        (workspace.root / ADAPTERS).mkdir(exist_ok=True)
        log = Path(LOGS, f"{out.name}-export.log")
        (workspace.root / log).unlink(missing_ok=True)
        page.jobs.start(relative(out), line, log)
        return commands(line), relative(out)

    def show(name: str) -> tuple[Any, ...]:
        job = page.jobs.started.get(name)
        if not name or job is None:
            return gr.skip(), gr.skip(), gr.skip(), gr.Timer(active=False)
        output = log_tail(job.log)
        if job.exit_status is None:
            return notice(f"Writing {name} ..."), output, gr.Code(visible=False), gr.Timer(active=True)
        if job.exit_status != 0:
            return (
                notice("Failed; the output says why.", "fault"),
                output,
                gr.Code(visible=False),
                gr.Timer(active=False),
            )
        text = _certificate(workspace.root / name)
        return _files(workspace.root, name), output, gr.Code(value=text, visible=bool(text)), gr.Timer(active=False)

    outputs = [result, log, certificate, clock]
    tab.select(choices, None, [chosen], show_progress="hidden")
    for part in (chosen, kind):
        part.change(suggest, [chosen, kind], [name], show_progress="hidden")
    start.click(export, [chosen, kind, rank, name], [command, watched]).success(
        show, [watched], outputs, show_progress="hidden"
    )
    clock.tick(show, [watched], outputs, show_progress="hidden", queue=False)


_WEIGHTS = (ADAPTER, NATIVE)


def _certificate(directory: Path) -> str:
    """The certificate with the fingerprint of the base, which is long, at its end; "" if there is none."""
    try:
        content = json.loads((directory / CERTIFICATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    base = {"base": content.pop("base")} if isinstance(content, dict) and "base" in content else {}
    return json.dumps({**content, **base} if base else content, indent=2)


def _files(root: Path, name: str) -> Markup:
    from kasatune.reports import formatting

    files = sorted(path for path in (root / name).rglob("*") if path.is_file())
    sizes = [(path.relative_to(root / name).as_posix(), formatting.size(path.stat().st_size)) for path in files[:20]]
    return notice(f"Written to {name}.", "good") + facts(sizes)
