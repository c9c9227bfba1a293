"""Read conversations: Alpaca, OpenAI messages, ShareGPT, prompts and completions, from a file or a table of the hub."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kasatune.data.readers.faults import Faults, show
from kasatune.data.readers.tables import column_names, read_table
from kasatune.errors import DataError
from kasatune.wording import agree, counted

Chat = tuple[tuple[str, str], ...]
"""Messages as (role, text): an optional "system" first, then "user" and "assistant" in turn, ending with an answer."""


class Unlearnt(str):
    """The text of an answer that no loss is computed on: a message of weight 0. Elsewhere it is plain text."""


MESSAGES, CONVERSATIONS = "messages", "conversations"
_LISTS = (MESSAGES, CONVERSATIONS)
_PAIRS = (("instruction", "output"), ("prompt", "completion"))
_FURTHER = ("system", "history", "weight", "tools")  # columns that change what a row means
_ROLES = ("system", "user", "assistant")
_SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
}
_KEYS = ("role", "content", "from", "value", "weight")
_EMPTY = (None, "", "[]", [])


def read_chats(path: Path) -> tuple[list[Chat], list[str]]:
    """The conversations of a file, in a form that is recognized by its columns.

    - `messages`, as of OpenAI: a list of {"role", "content"}; or `conversations`, as of ShareGPT: a list of {"from",
      "value"}. A column `system` gives the system message of a row that has none.
    - `instruction`, `output` and optionally `input`, as of Alpaca; or `prompt` and `completion`, which may be lists of
      messages. The columns `system` and `history`, a list of pairs of question and answer, come before them.

    An answer whose message has the weight 0 is `Unlearnt`, one of weight 1 is learnt, as without a weight. Alpaca rows
    with an empty output, of which the published data set has some, are left out. Other weights, weights of rows and
    `tools` are refused: they cannot be heeded.

    Returns:
        The rows, and notes: the form, columns that are not read, rows that were left out.

    Raises:
        DataError: the file is unreadable (see `read_table`) or has other columns, or a row is not a conversation that
            ends with an answer; all faults are listed.
    """
    names = column_names(path)
    columns = columns_of_chats(names, str(path))
    table = read_table(path, columns)
    chats, notes = chats_of_rows(table.columns, str(path), table.place)
    return chats, [*form_of_chats(names, columns, str(path)), *notes]


def columns_of_chats(names: Sequence[str], source: str) -> list[str]:
    """Those of `names` that hold conversations.

    Raises:
        DataError: the columns for a conversation are missing.
    """
    further = [name for name in _FURTHER if name in names]
    for name in _LISTS:
        if name in names:
            return [name, *further]
    for pair in _PAIRS:
        if all(name in names for name in pair):
            optional = ["input"] if pair[0] == "instruction" and "input" in names else []
            return [pair[0], *optional, pair[1], *further]
    shown = ", ".join(map(repr, names[:20]))
    raise DataError(
        f"{source}: the columns are {shown}; instruction rows have messages, conversations, instruction and output, or"
        " prompt and completion"
    )


def form_of_chats(names: Sequence[str], columns: Sequence[str], source: str) -> list[str]:
    """A note that says how rows are read, where they are not in Alpaca's form or have columns that are not read."""
    unread = [name for name in names if name not in columns]
    if not unread and set(columns) <= {"instruction", "input", "output"}:
        return []
    note = f"{source}: conversations are read from {', '.join(columns)}"
    return [f"{note}; {', '.join(unread)} {agree(len(unread), 'is', 'are')} not read" if unread else note]


def chats_of_rows(columns: Mapping[str, Sequence[Any]], source: str, place: Any = None) -> tuple[list[Chat], list[str]]:
    """The conversations in the columns of `columns_of_chats`, and notes about rows that were left out.

    Args:
        columns: values by column name, all of the same length.
        source: where they were read from, for messages.
        place: describes the place of a value, given its row index and column.

    Raises:
        DataError: a row is not a conversation; all faults are listed.
    """
    place = place or (lambda index, column: f"row {index + 1}, column {column!r}")
    faults = Faults(source)
    number = len(next(iter(columns.values())))
    rows = ({name: column[index] for name, column in columns.items()} for index in range(number))
    chats = [_row(row, lambda column, index=index: place(index, column), faults) for index, row in enumerate(rows)]
    faults.raise_any()
    answered = [chat for chat in chats if chat]
    empty = len(chats) - len(answered)
    first = next((index for index, chat in enumerate(chats) if not chat), 0)
    notes = []
    if empty:
        notes.append(
            f"{source}: {empty:,} of {counted(len(chats), 'row')} {agree(empty, 'has', 'have')} an empty output "
            f"and {agree(empty, 'is', 'are')} left out, first row {first + 1}"
        )
    unlearnt = sum(isinstance(text, Unlearnt) for chat in answered for _, text in chat)
    if unlearnt:
        notes.append(
            f"{source}: {counted(unlearnt, 'answer')} {agree(unlearnt, 'has', 'have')} the weight 0 and "
            f"{agree(unlearnt, 'is', 'are')} not learnt"
        )
    return answered, notes


def alpaca_message(instruction: str, input_text: str | None) -> str:
    """The user message of an Alpaca row: the instruction and, after an empty line, its input."""
    return f"{instruction}\n\n{input_text}" if input_text and input_text.strip() else instruction


def _row(row: Mapping[str, Any], place: Callable[[str], str], faults: Faults) -> Chat:
    """The conversation of a row; empty if its output is empty or it has a fault."""
    if "weight" in row and row["weight"] not in (None, 1):
        faults.add(f"{place('weight')}: {show(row['weight'])}; rows cannot be weighted: leave the column out")
        return ()
    if "tools" in row and row["tools"] not in _EMPTY:
        faults.add(f"{place('tools')}: tools cannot be trained on: leave out the rows that have them")
        return ()
    lists = next((name for name in _LISTS if name in row), None)
    if lists is None:
        return _pair(row, place, faults)
    if row.get("history") not in _EMPTY:
        faults.add(f"{place('history')}: put the earlier messages into {lists}")
        return ()
    return checked_chat(after_system(row, row[lists], place, faults), place(lists), faults)


def after_system(row: Mapping[str, Any], messages: Any, place: Callable[[str], str], faults: Faults) -> Any:
    """`messages` after the system message in the column `system`, if there is one."""
    system = row.get("system")
    if system in (None, "") or not isinstance(messages, (list, tuple)):
        return messages
    if not isinstance(system, str):
        faults.add(f"{place('system')}: {show(system)} is not text")
        return messages
    return [{"role": "system", "content": system}, *messages]


def _pair(row: Mapping[str, Any], place: Callable[[str], str], faults: Faults) -> Chat:
    """A row with a question and an answer in two columns."""
    question, answer = next(pair for pair in _PAIRS if pair[0] in row)
    if isinstance(row[question], (list, tuple)) and isinstance(row[answer], (list, tuple)):
        messages = [*history_messages(row, place, faults), *row[question], *row[answer]]
        return checked_chat(after_system(row, messages, place, faults), place(question), faults)
    if isinstance(row[answer], str) and not row[answer].strip():
        return ()
    for name in (question, "input", answer):
        value, required = row.get(name), name != "input"
        if not (isinstance(value, str) and (value.strip() or not required)) and not (value is None and not required):
            what = "the text is missing" if value in (None, "") else f"{show(value)} is not text"
            faults.add(f"{place(name)}: {what}")
            return ()
    messages = [
        *history_messages(row, place, faults),
        {"role": "user", "content": alpaca_message(row[question], row.get("input"))},
        {"role": "assistant", "content": row[answer]},
    ]
    return checked_chat(after_system(row, messages, place, faults), place(question), faults)


def history_messages(row: Mapping[str, Any], place: Callable[[str], str], faults: Faults) -> list[dict[str, Any]]:
    """The messages of the column `history`: pairs of question and answer."""
    history = row.get("history")
    if history in _EMPTY:
        return []
    turns = history if isinstance(history, (list, tuple)) else ["no list"]
    if not all(isinstance(turn, (list, tuple)) and len(turn) == 2 for turn in turns):
        faults.add(f'{place("history")}: {show(history)}; pairs are needed: [["question", "answer"], ...]')
        return []
    return [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]


def checked_chat(value: Any, place: str, faults: Faults) -> Chat:
    """The conversation in a list of messages; empty, with a fault added, if it is none that ends with an answer."""
    if not isinstance(value, (list, tuple)) or not value:
        faults.add(f'{place}: {show(value)} where a list is expected: [{{"role": "user", "content": "..."}}, ...]')
        return ()
    messages = []
    for number, message in enumerate(value, start=1):
        role, text = _role_and_text(message) if isinstance(message, Mapping) else (None, None)
        fault = _unheeded(message, role) if isinstance(message, Mapping) else ""
        if fault:
            faults.add(f"{place}, message {number}: {fault}")
            return ()
        if role not in _ROLES or not isinstance(text, str) or not text.strip():
            faults.add(f"{place}, message {number}: {show(message)}; a role of {', '.join(_ROLES)} and text are needed")
            return ()
        messages.append((role, Unlearnt(text) if message.get("weight") == 0 else text))
    turns = messages[1:] if messages[0][0] == "system" else messages
    expected = [("user", "assistant")[number % 2] for number in range(len(turns))]
    roles = [role for role, _ in turns]
    if roles != expected or len(turns) % 2 or not turns:
        faults.add(
            f"{place}: the roles are {', '.join(role for role, _ in messages)}; user and assistant must take"
            " turns, and the last message must be the assistant's"
        )
        return ()
    if all(isinstance(text, Unlearnt) for role, text in messages if role == "assistant"):
        faults.add(f"{place}: every answer has the weight 0, so there is nothing to learn: leave the row out")
        return ()
    return tuple(messages)


def _role_and_text(message: Mapping[str, Any]) -> tuple[Any, Any]:
    """Role and text of a message, as of OpenAI or as of ShareGPT."""
    role = message.get("role") if message.get("role") is not None else message.get("from")
    text = message.get("content") if message.get("content") is not None else message.get("value")
    return _SHAREGPT_ROLES.get(role, role) if isinstance(role, str) else role, text


def _unheeded(message: Mapping[str, Any], role: Any) -> str:
    """Why a message cannot be trained on as it is; "" if it can."""
    weight = message.get("weight")
    if isinstance(weight, bool) or weight not in (None, 0, 1):
        return f"weight {show(weight)} received; must be 0, the answer is not learnt, or 1, it is"
    if weight == 0 and role != "assistant":
        return f"weight 0 of a message of {show(role)} received; weights are for answers of the assistant: remove it"
    calls = next((key for key in ("tool_calls", "function_call") if message.get(key) not in _EMPTY), None)
    if calls is not None:
        return f"{calls} cannot be trained on: leave the row out"
    unknown = [key for key, value in message.items() if key not in _KEYS and value not in _EMPTY]
    return f"{', '.join(map(show, unknown))}: no such key of a message is known; remove it" if unknown else ""
