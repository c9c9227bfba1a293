from __future__ import annotations

import socket
import sys
from typing import Annotated

import typer

from kasatune.cli.console import note, results_only, say
from kasatune.cli.fast_import import large_libraries
from kasatune.errors import InputError

_LOCAL = ("127.0.0.1", "localhost", "::1")


def command(
    given: Annotated[
        str,
        typer.Argument(
            metavar="RUN_OR_MODEL", help="A run, an adapter or a model (hub id, folder, GGUF file).", show_default=False
        ),
    ],
    base: Annotated[
        str | None,
        typer.Option(
            "--base", metavar="MODEL", help="Where the base model of a run or adapter is.", show_default=False
        ),
    ] = None,
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on; 0.0.0.0 for other machines too.")
    ] = "127.0.0.1",
    name: Annotated[str, typer.Option(metavar="NAME", help="Name of the tuned model.")] = "tuned",
) -> None:
    """Serve the model of a run, with its base beside it, to OpenAI clients until Ctrl-C.

    The tuned model answers as `tuned` (see --name) and its base as `base`, at /v1/chat/completions if it was trained on
    conversations, and at /v1/completions. Prompts are made with the chat template of the training; without a
    temperature the most probable token is taken. Needs `kasatune[serving]`.

    Example: kasatune serve runs/assistant --port 8000
    """
    with results_only(), large_libraries():
        import uvicorn

        from kasatune.adapter_tools.chat import open_chat
        from kasatune.adapter_tools.serve import build_app, require_name, served_models

    require_name(name)
    with _listen(host, port) as listener:
        with results_only():
            models = served_models(open_chat(given, base), name)
            server = uvicorn.Server(uvicorn.Config(build_app(models), log_level="warning", access_log=False))
        if host not in _LOCAL:
            note(f"every machine that reaches {host} can ask this server; it checks no key")
        address = f"[{host}]" if ":" in host else host
        say(f"http://{address}:{listener.getsockname()[1]}/v1 serves {' and '.join(models)}; Ctrl-C stops")
        sys.stdout.flush()
        with results_only():
            server.run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens on an address, before a model is loaded.

    Raises:
        InputError: the address does not exist here, or the port is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()
    except OSError as fault:
        listener.close()
        raise InputError(
            f"--port: {port} on {host} received; {fault.strerror or fault}; choose another port, or 0 for a free one"
        ) from fault
    return listener
