"""The `kasatune` command line: the Typer application, and exceptions turned into messages and exit status."""

from __future__ import annotations

import errno
import importlib
import itertools
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

import kasatune
from kasatune.cli.console import complain, note, say
from kasatune.errors import KasatuneError
from kasatune.io.library_noise import hush_imports, own_warnings

# Subcommand: the module in kasatune.cli.commands whose `command` it runs, in the order of the help.
COMMANDS = {
    "demo": "demo",
    "train": "train",
    "compare": "compare",
    "reproduce": "reproduce",
    "evaluate": "evaluate",
    "predict": "predict",
    "chat": "chat",
    "serve": "serve",
    "ui": "ui",
    "plan": "plan",
    "list": "listing",
    "show": "show",
    "init": "init",
    "export": "export",
    "merge": "merge",
    "shrink": "shrink",
    "push": "push",
    "verify": "verify",
    "inspect": "inspect",
    "decompose": "decompose",
    "synthesize": "synthesize",
    "simrag": "simrag",
}

_LONGEST_VALUE = 60
_THEIR_WORDS = {
    ": Value error, ": ": ",
    "Input should be a valid integer, unable to parse string as an integer": "must be a whole number",
    "Input should be a valid number, unable to parse string as a number": "must be a number",
    "Input should be greater than or equal to": "must be at least",
    "Input should be less than or equal to": "must be at most",
    "Input should be": "must be",
}

_HELP = """Fine-tune language models with KaSA, compare it with other PEFT methods, export plain LoRA adapters.

Start with `kasatune demo`, then `kasatune list recipes`.

Exit status: 0 success, 1 the operation failed, 2 invalid input, 130 interrupted.
"""


def build_app() -> typer.Typer:
    """Build the application with every command; importing a command's module imports no large library."""
    app = typer.Typer(
        name="kasatune",
        help=_HELP,
        rich_markup_mode="markdown",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback(invoke_without_command=True)
    def top(
        context: typer.Context,
        version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
    ) -> None:
        if version:
            say(f"kasatune {kasatune.__version__}")
        elif context.invoked_subcommand is None:
            say(context.get_help())

    for name, module in COMMANDS.items():
        app.command(name)(importlib.import_module(f"kasatune.cli.commands.{module}").command)
    top.__doc__ = _HELP
    return app


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status; every error becomes a message on standard error.

    Args:
        argv: arguments after the command's name; the process's own by default.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    if "LOCAL_RANK" in os.environ:  # under torchrun, every process would print it
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    hush_imports()
    try:
        with own_warnings(note):
            status = _invoke(arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        _close_output()
        return 1
    except (Exception, KeyboardInterrupt) as error:
        if os.environ.get("KASATUNE_DEBUG"):
            traceback.print_exc()
        message, status = describe(error, arguments)
        note(message) if isinstance(error, KeyboardInterrupt) else complain(message)
        return status


def describe(error: BaseException, arguments: Sequence[str] = ()) -> tuple[str, int]:
    """The message for the user and the exit status for `error`, which these arguments caused."""
    if isinstance(error, KasatuneError):
        return str(error), error.exit_status
    if isinstance(error, KeyboardInterrupt):
        return "; ".join(["interrupted", *getattr(error, "__notes__", ())]), 130
    if hasattr(error, "format_message"):  # exceptions of typer and click, which have no common public base
        context = getattr(error, "ctx", None)
        hint = f"; see `{context.command_path} --help`" if context else ""
        message = _plain(" ".join(error.format_message().split()).rstrip("."))  # pyright: ignore
        return f"{message}{_received(error, arguments)}{hint}", getattr(error, "exit_code", 2)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "out of memory; raise training.gradient_accumulation, or lower training.batch_size, task.max_length", 1
    if isinstance(error, OSError) and error.errno is not None:
        what = f"{error.filename}: " if error.filename else ""
        hint = "; free some space and run the command again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        return f"{what}{error.strerror}{hint}", 1
    reason = str(error).strip() or "no reason given"
    return f"unexpected {type(error).__name__}: {reason} (KASATUNE_DEBUG=1 shows where)", 1


def _plain(message: str) -> str:
    """A message of typer without the words of the library that checks its values."""
    for theirs, ours in _THEIR_WORDS.items():
        message = message.replace(theirs, ours)
    return message


def _received(error: BaseException, arguments: Sequence[str]) -> str:
    """The value given for the option that an error is about; typer omits it from some messages."""
    options = getattr(getattr(error, "param", None), "opts", ())
    for option, value in itertools.pairwise(arguments):
        if option in options and option.startswith("-"):
            return f"; {value[:_LONGEST_VALUE]!r} received"
    return ""


def _invoke(arguments: list[str]) -> int:
    command = typer.main.get_command(build_app())
    if "_KASATUNE_COMPLETE" in os.environ:  # the shell requests completions
        command.main(arguments, prog_name="kasatune")
    try:
        with command.make_context("kasatune", arguments) as context:
            command.invoke(context)
    except typer.Exit as finished:
        return finished.exit_code
    except typer.Abort:
        return 130
    return 0


def _close_output() -> None:
    """Redirect standard output, whose reader is gone, so that the interpreter's last flush cannot fail."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - open until the process ends
