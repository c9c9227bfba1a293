from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from kasatune.cli.console import note
from kasatune.errors import InputError


def command(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder that the page reads and writes.", show_default="here")
    ] = Path(),
    port: Annotated[int, typer.Option(metavar="N", help="Port of the page.")] = 7860,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Other than this machine only with --auth.")
    ] = "127.0.0.1",
    auth: Annotated[
        str | None,
        typer.Option(
            metavar="USER:PASSWORD",
            envvar="KASATUNE_UI_AUTH",
            help="Ask for a name and a password; better given in the environment than on the command line.",
            show_default=False,
            show_envvar=True,
        ),
    ] = None,
    read: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="A further folder with models or data; may be repeated.", show_default=False),
    ] = None,
    max_upload: Annotated[int, typer.Option(metavar="MIB", help="Largest file that can be uploaded.")] = 256,
) -> None:
    """Serve a local web page: start runs, watch and compare them, chat with models, export adapters.

    Example: kasatune ui experiments --read /data/models

    The page runs the commands of this program, which it shows, in DIR. Runs continue when the page or the browser is
    closed. It sends nothing to other machines; recipes that name models or data of the hub download them, as
    `kasatune train` does. Ctrl-C ends it.
    """
    if not 1 <= port <= 65535:
        raise InputError(f"--port: {port} received; must be 1 to 65535")
    if not 1 <= max_upload <= 1 << 20:
        raise InputError(f"--max-upload: {max_upload} received; must be 1 to {1 << 20}")
    from kasatune.ui.request_guard import require_safe_host

    login = require_safe_host(host, auth)
    from kasatune.ui.app import make_app, serve
    from kasatune.ui.workspace import Workspace

    workspace = Workspace.open(folder, read or ())
    os.chdir(workspace.root)
    app = make_app(workspace, host, port, login, max_upload << 20)
    shown = f"[{host}]" if ":" in host else host
    note(f"kasatune ui: http://{shown}:{port} works in {workspace.root}; Ctrl-C ends it")
    serve(app, host, port)
