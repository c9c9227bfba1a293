"""Numbers with their nouns and verbs: "1 step", "2 steps"; "1 row is", "2 rows are"."""

from __future__ import annotations

_IRREGULAR = {
    "entry": "entries",
    "matrix": "matrices",
    "micro-batch": "micro-batches",
    "process": "processes",
    "reply": "replies",
    "retry": "retries",
}


def counted(number: float, noun: str, plural: str | None = None) -> str:
    """`number` and its noun, such as "1 step" and "1,234 steps".

    Args:
        number: an integer, or a fraction such as a number of epochs.
        noun: the singular, which may be several words; its last word takes the plural.
        plural: the plural of `noun`, where it is not regular.
    """
    shown = f"{int(number):,}" if number == int(number) else f"{number:g}"
    if number == 1:
        return f"{shown} {noun}"
    if plural is None:
        start, space, last = noun.rpartition(" ")
        plural = f"{start}{space}{_IRREGULAR.get(last, f'{last}s')}"
    return f"{shown} {plural}"


def agree(number: float, singular: str, plural: str) -> str:
    """The form of a verb or pronoun for `number` subjects, such as "is" or "are"."""
    return singular if number == 1 else plural


def epoch(number: float) -> str:
    """An epoch, or a fraction of one, with at most two decimals: "2", "1.33"."""
    return f"{round(number, 2):g}"
