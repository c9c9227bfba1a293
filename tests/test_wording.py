"""Numbers with their nouns: `kasatune.wording`, and no message that writes a plural after a number by itself."""

import ast
import re
from pathlib import Path

import pytest

from kasatune.wording import agree, counted, epoch

SOURCES = Path(__file__).parent.parent / "src"
# Nouns that are counted in messages; a number that cannot be 1 is written as a constant.
COUNTED = re.compile(r" (?:[a-z-]+ )?(layers|rows|runs|seeds|steps|texts|threads|tokens|trials|files|tasks|faults)\b")
CONSTANT = re.compile(r"_?[A-Z][A-Z_]+")
NO_NUMBERS = {"data.subject", "forms", "self.kind", "task.name", "method", "number", "shown(config.target_modules)"}


@pytest.mark.parametrize(
    ("number", "noun", "words"),
    [
        (0, "row", "0 rows"),
        (1, "row", "1 row"),
        (1.0, "epoch", "1 epoch"),
        (1.5, "epoch", "1.5 epochs"),
        (1234567, "training row", "1,234,567 training rows"),
        (1, "process", "1 process"),
        (2, "reply", "2 replies"),
        (2, "equal micro-batch", "2 equal micro-batches"),
    ],
)
def test_a_number_with_its_noun(number, noun, words):
    assert counted(number, noun) == words


def test_verbs_agree():
    assert [agree(number, "is", "are") for number in (0, 1, 2)] == ["are", "is", "are"]


@pytest.mark.parametrize(("number", "words"), [(4 / 3, "1.33"), (2.0, "2"), (0, "0"), (10.5, "10.5"), (1e-9, "0")])
def test_an_epoch_has_at_most_two_decimals(number, words):
    assert epoch(number) == words


def test_every_message_takes_its_plurals_from_one_function():
    faults = []
    for path in SOURCES.rglob("*.py"):
        for text in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.JoinedStr)):
            for value, after in zip(text.values, text.values[1:], strict=False):
                if isinstance(value, ast.FormattedValue) and isinstance(after, ast.Constant):
                    number = ast.unparse(value.value)
                    match = COUNTED.match(str(after.value))
                    if (
                        match
                        and not CONSTANT.fullmatch(number)
                        and number not in NO_NUMBERS
                        and "counted(" not in number
                    ):
                        faults.append(f"{path.relative_to(SOURCES)}:{value.lineno}: {{{number}}}{match[0]}")
    assert not faults
