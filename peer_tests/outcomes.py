"""How a test of PEFT's suite ended on one of this project's tuners: passed, refused by design, skipped or failed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from kasatune.errors import KasatuneError

_LONGEST = 600
"""Characters of a message that a record keeps."""


class Outcome(StrEnum):
    """The outcomes of a test."""

    PASSED = "passed"
    REFUSED = "refused"
    SKIPPED = "skipped"
    NO_FILE = "no file"
    FAILED = "failed"


@dataclass(frozen=True)
class Refusal:
    """A documented difference from LoRA.

    Args:
        title: for the table of results.
        why: the reason, and what to use instead.
        message: pattern of the error that the tuner raises; "" if the test's own assertion fails.
        tests: pattern of the tests whose assertion does not hold for the tuner; "" for any.
        twins: pattern of the tuners.
    """

    title: str
    why: str
    message: str = ""
    tests: str = ""
    twins: str = ""


REFUSALS: tuple[Refusal, ...] = ()

_NO_FILE = re.compile(
    r"offline|couldn't (connect|find)|can't (load|find)|cannot (find|send)|not a local folder|connection|resolve",
    re.IGNORECASE,
)


def describe(error: BaseException | None) -> dict[str, Any]:
    """What the record of a test keeps of the exception that ended it.

    Returns:
        error: its type and message; raised: the messages of this project's errors among it and its causes; hub:
        whether a file of the hub was asked for.
    """
    if error is None:
        return {"error": "", "raised": [], "hub": False}
    chain = list(_chain(error))
    return {
        "error": f"{type(error).__name__}: {error}"[:_LONGEST],
        "raised": [str(link)[:_LONGEST] for link in chain if isinstance(link, KasatuneError)],
        "hub": any(isinstance(link, OSError | ValueError) and _NO_FILE.search(str(link)) for link in chain),
    }


def classify(record: Mapping[str, Any]) -> tuple[Outcome, str]:
    """The outcome of a recorded test, with the title of the refusal, the reason of the skip or the error.

    Args:
        record: `pytest` ("passed", "failed", "skipped" or "xfailed"), `test`, `twin`, and the items of `describe`.
    """
    if record["pytest"] == "passed":
        return Outcome.PASSED, ""
    if record["pytest"] in ("skipped", "xfailed"):
        return Outcome.SKIPPED, record["error"]
    refusal = next((refusal for refusal in REFUSALS if _is_case_of(refusal, record)), None)
    if refusal is not None:
        return Outcome.REFUSED, refusal.title
    if record["hub"]:
        return Outcome.NO_FILE, record["error"]
    return Outcome.FAILED, record["error"]


def _is_case_of(refusal: Refusal, record: Mapping[str, Any]) -> bool:
    if not re.search(refusal.twins, record["twin"]) or not re.search(refusal.tests, record["test"]):
        return False
    if refusal.message:
        return any(re.search(refusal.message, message) for message in (*record["raised"], record["error"]))
    return not record["raised"] and record["error"].startswith("AssertionError")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it was raised from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
