"""function-summary: rows from installed packages, repeatable, split by file, without a summary in both parts."""

import pytest

from kasatune.data.tasks import function_summary, load_task
from kasatune.data.tasks.function_summary import first_sentence
from kasatune.errors import DataError
from tests.data.tasks.settings import Settings


@pytest.fixture(scope="module")
def data():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(function_summary, "LIBRARIES", {"networkx": "networkx"})
        patch.setattr(function_summary, "MAX_TRAIN", 40)
        patch.setattr(function_summary, "MAX_HELD_OUT", 20)
        yield load_task(Settings("function-summary"))


def test_rows_are_requests_with_a_signature_and_one_sentence(data):
    train = data.splits["train"]
    assert len(train) == 40
    for request, summary in zip(train.first, train.labels, strict=True):
        assert "Summarize this Python function of networkx in one sentence." in request
        assert "def " in request and "(" in request
        assert 4 <= len(summary.split()) <= 30 and "\n" not in summary


def test_no_summary_is_in_both_parts(data):
    assert len(data.splits["validation"]) >= 15
    assert not set(data.splits["train"].labels) & set(data.splits["validation"].labels)


def test_rows_do_not_change(data):
    assert load_task(Settings("function-summary")).sha256 == data.sha256


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("Return the sum of all elements. And more.\n\nLong.", "Return the sum of all elements."),
        ("Return the sum\n    of all elements", "Return the sum of all elements"),
        ("Return the sum of all Args: x: a number", "Return the sum of all"),
        ("Too short.", ""),
        ("aten::add(Tensor a) -> Tensor is the operator", ""),
        ("", ""),
    ],
)
def test_the_first_sentence(docstring, sentence):
    assert first_sentence(docstring) == sentence


def test_a_package_without_functions_is_named(monkeypatch):
    monkeypatch.setattr(function_summary, "LIBRARIES", {"tqdm": "tqdm"})
    with pytest.raises(DataError, match="documented functions in tqdm"):
        load_task(Settings("function-summary"))
