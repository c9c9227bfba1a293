from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from kasatune.cli.columns import Columns
from kasatune.cli.console import note, results_only
from kasatune.cli.fast_import import large_libraries
from kasatune.errors import InputError
from kasatune.redaction import printable

if TYPE_CHECKING:
    from kasatune.adapter_tools.chat import Conversation

_HELP = "/new begins a new conversation, /quit ends, as Ctrl-D does; Ctrl-C stops an answer"


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
    once: Annotated[
        str | None, typer.Option("--once", metavar="PROMPT", help="Print one answer and exit.", show_default=False)
    ] = None,
    beside: Annotated[
        bool, typer.Option("--beside", help="Show the base model's answer next to the tuned one's.")
    ] = False,
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="A system message.", show_default=False)
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(metavar="N", help="Longest answer. Default: that of the run, 256 otherwise.", show_default=False),
    ] = None,
    temperature: Annotated[float, typer.Option(metavar="T", help="0 takes the most probable token.")] = 0.0,
    top_p: Annotated[float, typer.Option(metavar="P", help="Sample from this share of the probability.")] = 1.0,
    top_k: Annotated[int, typer.Option(metavar="K", help="Sample from the K most probable tokens; 0: all.")] = 0,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the samples.")] = 0,
) -> None:
    """Chat with the model of a run, with an adapter or with a base model.

    Prompts are made as in training: through the chat template if the run was trained on conversations. Without a
    terminal, each line of standard input is a message and each answer is printed on a line.

    Example: kasatune chat runs/docs --once "json.dumps(obj):"
    """
    _check(once, max_new_tokens, temperature, top_p, top_k, seed)
    with results_only():
        with large_libraries():
            from kasatune.adapter_tools.chat import Conversation, open_chat
            from kasatune.evaluation.stream import Sampling

        chat = open_chat(given, base)
        if beside:
            chat.base()
    sampling = Sampling(max_new_tokens or chat.max_new_tokens, temperature, top_p, top_k, seed)
    conversations = [Conversation(chat, sampling, system) for _ in range(2 if beside else 1)]
    if system is not None and not chat.is_chat:
        raise InputError("--system: the model was not trained on conversations; leave it out")
    interactive = once is None and sys.stdin.isatty()
    if interactive:
        note(_HELP)
    for number, message in enumerate(_messages(interactive) if once is None else [once]):
        if interactive and _is_command(message):
            if message == "/quit":
                return
            if message != "/new":
                note(f"{message}: no such command; {_HELP}")
                continue
            for conversation in conversations:
                conversation.history.clear()
            continue
        for conversation in conversations:  # or equal questions would get equal samples
            conversation.sampling = replace(sampling, seed=seed + number)
        before = [list(conversation.history) for conversation in conversations]
        try:
            _answer(conversations, message)
        except (InputError, KeyboardInterrupt) as fault:
            if not interactive:
                raise
            for conversation, history in zip(conversations, before, strict=True):
                conversation.history[:] = history
            note("stopped; the message is forgotten" if isinstance(fault, KeyboardInterrupt) else str(fault))


def _is_command(message: str) -> bool:
    """Whether a message is a command: one word that begins with a slash, and no path."""
    return message.startswith("/") and message[1:].isalpha()


def _check(
    once: str | None, max_new_tokens: int | None, temperature: float, top_p: float, top_k: int, seed: int
) -> None:
    """Check the options before anything is loaded.

    Raises:
        InputError: a value is outside its limits.
    """
    if once is not None and not once.strip():
        raise InputError("--once: an empty prompt received; write one")
    if max_new_tokens is not None and max_new_tokens < 1:
        raise InputError(f"--max-new-tokens: {max_new_tokens} received; must be 1 or more")
    if not 0 <= temperature < float("inf"):
        raise InputError(f"--temperature: {temperature} received; must be 0 or more")
    if not 0 < top_p <= 1:
        raise InputError(f"--top-p: {top_p} received; must be above 0 and at most 1")
    if top_k < 0:
        raise InputError(f"--top-k: {top_k} received; must be 0 or more")
    if not 0 <= seed < 2**32:
        raise InputError(f"--seed: {seed} received; must be 0 to 4294967295")
    if temperature == 0 and (top_p < 1 or top_k > 0):
        raise InputError("--top-p and --top-k apply to samples; give --temperature above 0, such as 0.7")


def _messages(interactive: bool) -> Iterator[str]:
    """The user's messages, from a prompt on a terminal, else the lines of standard input; empty ones are skipped."""
    if not interactive:
        try:
            yield from (line.rstrip("\r\n") for line in sys.stdin if line.strip())
        except UnicodeDecodeError as fault:
            raise InputError(f"standard input is not UTF-8 text ({fault.reason}); convert it") from fault
        return
    import contextlib

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - editing and history of input()
    while True:
        try:
            message = input("> ").strip()
        except EOFError:
            print()
            return
        if message:
            yield message


def _answer(conversations: list[Conversation], message: str) -> None:
    """Print the answer to a message while it is generated; of two models in two columns."""
    from kasatune.adapter_tools.chat import ask_both

    if len(conversations) == 1:
        try:
            conversations[0].ask(message, _writer())
        finally:
            print(flush=True)
        _show_passages(conversations[0])
        return
    tuned, untuned = conversations
    with Columns("base", "tuned") as columns:
        ask_both(tuned, untuned, message, columns.add)
    _show_passages(tuned)


def _show_passages(conversation: Conversation) -> None:
    """Print the passages of the last prompt on standard error, so that standard output holds answers alone."""
    for number, passage in enumerate(conversation.passages, start=1):
        note(printable(f"[{number}] {passage.document} ({passage.score:.2f}): {' '.join(passage.text.split())}"))


def _writer() -> Callable[[str], None]:
    def write(piece: str) -> None:
        print(printable(piece), end="", flush=True)

    return write
