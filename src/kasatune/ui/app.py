"""Build the page with Gradio and serve it: no request leaves the machine, and other pages cannot send it any."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from markupsafe import Markup

from kasatune.errors import MissingExtraError, WorkError

# Before Gradio is imported, which reads them once.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["GRADIO_SHARE"] = "False"

try:
    import gradio as gr
    import uvicorn
    from fastapi import FastAPI
    from gradio.themes import Base
except ImportError as fault:
    raise MissingExtraError("kasatune ui", "ui", [str(fault.name or "gradio")]) from fault

from kasatune.ui import chat_tab, compare_tab, export_tab, runs_tab, start_tab
from kasatune.ui.jobs import Jobs
from kasatune.ui.page import Page
from kasatune.ui.request_guard import OwnRequestsOnly, host_check
from kasatune.ui.workspace import Workspace

CACHE = ".kasatune-ui"
"""Folder for temporary files of the page, below the workspace; emptied when the page starts."""


def build_page(page: Page) -> gr.Blocks:
    """The page with its tabs."""
    with gr.Blocks(title="kasatune", analytics_enabled=False, fill_width=True) as blocks:
        title = Markup('<h1>kasatune</h1><p class="folder">{}</p>').format(str(page.workspace.root))
        gr.HTML(title, elem_id="title")
        with gr.Tab("Start", id="start"):
            view = start_tab.build(page)
        with gr.Tab("Runs", id="runs") as tab:
            runs_tab.build(page, tab)
        with gr.Tab("Compare", id="compare") as tab:
            compare_tab.build(page, tab)
        with gr.Tab("Chat", id="chat") as tab:
            chat_tab.build(page, tab)
        with gr.Tab("Export", id="export-tab") as tab:
            export_tab.build(page, tab)

        def begin() -> Any:
            names = view.choices()
            return gr.Dropdown(choices=names, value=names[0] if names else None)

        blocks.load(begin, None, [view.chosen], show_progress="hidden")
    return blocks


def make_app(workspace: Workspace, host: str, port: int, auth: tuple[str, str] | None, largest_upload: int) -> FastAPI:
    """The web application.

    Args:
        workspace: the folder that it works in, which is also the working directory of this process.
        host: address that it is served at.
        port: its port.
        auth: user and password; None without.
        largest_upload: bytes.
    """
    page = Page(workspace, Jobs(workspace.root), largest_upload=largest_upload)
    cache = workspace.root / CACHE
    shutil.rmtree(cache, ignore_errors=True)
    os.environ["GRADIO_TEMP_DIR"] = str(cache)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    blocks = build_page(page)
    blocks.queue(default_concurrency_limit=4)
    gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        server_name=host,
        server_port=port,
        footer_links=[],
        run_history=False,
        auth=[auth] if auth else None,
        allowed_paths=[],
        blocked_paths=[str(workspace.root)],
        show_error=False,
        max_file_size=largest_upload,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=Base(
            primary_hue="blue",
            font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
            font_mono=["ui-monospace", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace"],
            radius_size="sm",
        ),
        css=Path(__file__).with_name("ui.css").read_text(encoding="utf-8"),
    )
    app.add_middleware(OwnRequestsOnly, hosts=host_check(host, port))
    return app


def serve(app: FastAPI, host: str, port: int) -> None:
    """Serve the application until Ctrl-C; commands that it started continue.

    Raises:
        WorkError: the port is in use.
    """
    server = uvicorn.Server(uvicorn.Config(app, host=host, port=port, log_level="warning", access_log=False))
    try:
        server.run()
    except SystemExit as fault:
        raise WorkError(f"port {port} of {host} cannot be used; give another with --port") from fault
