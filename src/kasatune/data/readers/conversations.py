"""Instruction rows: Alpaca's columns (instruction, input, output) or chat messages, from a file or the hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kasatune.data.readers.faults import Faults, show
from kasatune.data.readers.tables import column_names, read_table
from kasatune.errors import DataError

Chat = tuple[tuple[str, str], ...]
"""Messages as (role, text): "system" at most once and first, then "user" and "assistant" in turn, an answer last."""

MESSAGES = "messages"
_ALPACA = ("instruction", "output")
_ROLES = ("system", "user", "assistant")


def read_chats(path: Path) -> tuple[list[Chat], list[str]]:
    """The rows of a file: a column `messages`, or the columns `instruction`, `output` and, if it is there, `input`.

    Alpaca rows with an empty output, which the published set has, are left out.

    Returns:
        The rows, and what was left out in words.

    Raises:
        DataError: the file is unreadable (see `read_table`) or has other columns, or a row is no conversation that
            ends with an answer; every fault at once.
    """
    columns = columns_of_chats(column_names(path), str(path))
    table = read_table(path, columns)
    return chats_of_rows(table.columns, str(path), table.place)


def columns_of_chats(names: Sequence[str], source: str) -> list[str]:
    """Those of `names` that hold conversations.

    Raises:
        DataError: there are none.
    """
    if MESSAGES in names:
        return [MESSAGES]
    if all(name in names for name in _ALPACA):
        return [name for name in ("instruction", "input", "output") if name in names]
    shown = ", ".join(map(repr, names[:20]))
    raise DataError(
        f"{source}: the columns are {shown}; instruction rows have messages, or instruction, output and maybe input"
    )


def chats_of_rows(columns: Mapping[str, Sequence[Any]], source: str, place: Any = None) -> tuple[list[Chat], list[str]]:
    """The conversations in columns that `columns_of_chats` chose, and what was left out in words.

    Args:
        columns: values by column name, all of one length.
        source: where they are from, for messages.
        place: tells where a value lies, from the number of its row and the name of its column.

    Raises:
        DataError: a row is no conversation; every fault at once.
    """
    place = place or (lambda index, column: f"row {index + 1}, column {column!r}")
    faults = Faults(source)
    if MESSAGES in columns:
        found = [_chat(value, place(index, MESSAGES), faults) for index, value in enumerate(columns[MESSAGES])]
    else:
        found = [_alpaca(columns, index, place, faults) for index in range(len(columns["instruction"]))]
    faults.raise_any()
    kept = [chat for chat in found if chat]
    empty = len(found) - len(kept)
    first = next((index for index, chat in enumerate(found) if not chat), 0)
    notes = [f"{source}: {empty:,} of {len(found):,} rows have an empty output and are left out, first row {first + 1}"]
    return kept, notes if empty else []


def alpaca_message(instruction: str, further: str | None) -> str:
    """What a user says in an Alpaca row: the instruction and, after an empty line, its input."""
    return f"{instruction}\n\n{further}" if further and further.strip() else instruction


def _alpaca(columns: Mapping[str, Sequence[Any]], index: int, place: Any, faults: Faults) -> Chat:
    """The row, or nothing where its output is empty or where it has a fault."""
    values = {name: column[index] for name, column in columns.items()}
    if isinstance(values["output"], str) and not values["output"].strip():
        return ()
    for name, value in values.items():
        needed = name in _ALPACA
        if not (isinstance(value, str) and (value.strip() or not needed)) and not (value is None and not needed):
            what = "the text is missing" if value in (None, "") else f"{show(value)} is no text"
            faults.add(f"{place(index, name)}: {what}")
            return ()
    user = alpaca_message(values["instruction"], values.get("input"))
    return (("user", user), ("assistant", values["output"]))


def _chat(value: Any, place: str, faults: Faults) -> Chat:
    if not isinstance(value, (list, tuple)) or not value:
        faults.add(f'{place}: {show(value)} where a list is expected: [{{"role": "user", "content": "..."}}, ...]')
        return ()
    messages = []
    for number, message in enumerate(value, start=1):
        role = message.get("role") if isinstance(message, Mapping) else None
        text = message.get("content") if isinstance(message, Mapping) else None
        if role not in _ROLES or not isinstance(text, str) or not text.strip():
            faults.add(f"{place}, message {number}: {show(message)}; a role of {', '.join(_ROLES)} and text are needed")
            return ()
        messages.append((role, text))
    turns = messages[1:] if messages[0][0] == "system" else messages
    wanted = [("user", "assistant")[number % 2] for number in range(len(turns))]
    roles = [role for role, _ in turns]
    if roles != wanted or len(turns) % 2 or not turns:
        faults.add(
            f"{place}: the roles are {', '.join(role for role, _ in messages)}; user and assistant take turns,"
            " and the assistant has the last word"
        )
        return ()
    return tuple(messages)
