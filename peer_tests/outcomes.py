"""How a test of PEFT's suite ended on one of this project's tuners: passed, refused by design, skipped or failed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from kasatune.errors import KasatuneError


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
    r"offline|couldn't (connect|find)|can't load|cannot (find|send)|not a local folder|max retries|Connection|resolve",
    re.IGNORECASE,
)
_HUB_MODULES = ("huggingface_hub", "httpx", "requests", "datasets", "builtins", "transformers")


def classify(outcome: str, error: BaseException | None, twin: str, test: str) -> tuple[Outcome, str]:
    """The outcome of a test, with the title of the refusal, the reason of the skip or the error.

    Args:
        outcome: "passed", "failed" or "skipped", from pytest.
        error: the exception that ended the test.
        twin: name of the tuner.
        test: name of the test.
    """
    if outcome == "passed":
        return Outcome.PASSED, ""
    if outcome == "skipped" or error is None:
        return Outcome.SKIPPED, str(error or "")
    if any(isinstance(link, OSError) and _NO_FILE.search(str(link)) for link in _chain(error)):
        return Outcome.NO_FILE, _first_line(error)
    refusal = _refusal(error, twin, test)
    if refusal is not None:
        return Outcome.REFUSED, refusal.title
    return Outcome.FAILED, f"{type(error).__name__}: {_first_line(error)}"


def _refusal(error: BaseException, twin: str, test: str) -> Refusal | None:
    raised = [str(link) for link in _chain(error) if isinstance(link, KasatuneError)]
    for refusal in REFUSALS:
        if not re.search(refusal.twins, twin) or not re.search(refusal.tests, test):
            continue
        if refusal.message and any(re.search(refusal.message, message) for message in raised):
            return refusal
        if not refusal.message and not raised and isinstance(error, AssertionError):
            return refusal
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it was raised from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")[:300]
