"""The rows of a mixture: drawn by weight, the same for the same seed, and the splits of its parts."""

import json
from collections import Counter
from dataclasses import replace

import pytest

from kasatune.data.tasks import load_part_evaluation, load_task
from kasatune.data.tasks.dataset import ChatRows, rows_sha256
from kasatune.data.tasks.mixture import draw
from kasatune.data.tasks.mixture_parts import in_turn
from kasatune.data.tasks.mixture_rows import MixtureRows
from kasatune.errors import DataError
from kasatune.recipes.schema import TaskSection
from tests.text_toys import lines, write_jsonl


@pytest.fixture
def section(tmp_path):
    """Twelve prompts with completions, weight 3, and four conversations, weight 1."""
    chats = [{"instruction": f"say {word}", "output": word} for word in ("red", "blue", "green", "pub")]
    return TaskSection.model_validate(
        {
            "name": "mixture",
            "parts": [
                {
                    "name": "text-generation",
                    "title": "copy",
                    "weight": 3,
                    "train": str(write_jsonl(tmp_path / "a.jsonl", lines(12, seed=1))),
                    "validation": str(write_jsonl(tmp_path / "b.jsonl", lines(5, seed=2))),
                    "prompt": "question",
                    "completion": "answer",
                },
                {
                    "name": "instruction",
                    "train": str(write_jsonl(tmp_path / "c.jsonl", chats)),
                    "validation": str(write_jsonl(tmp_path / "d.jsonl", chats[:2])),
                },
            ],
        }
    )


@pytest.mark.parametrize(
    ("weights", "rows", "counts"),
    [
        ((1, 1), 10, [5, 5]),
        ((3, 1), 16, [12, 4]),
        ((1, 1, 1), 10, [4, 3, 3]),
        ((1e-9, 1), 10, [1, 9]),
        ((1e300, 1e300), 4, [2, 2]),
        ((0.7, 0.2, 0.1), 3, [1, 1, 1]),
    ],
)
def test_a_part_has_its_share_of_the_rows_and_at_least_one(weights, rows, counts):
    drawn = draw([100] * len(weights), weights, rows, seed=0)
    assert [sum(part == number for part, _ in drawn) for number in range(len(weights))] == counts


def test_no_row_is_drawn_again_before_all_were_drawn():
    counts = Counter(index for part, index in draw([5, 7], [1, 1], 34, seed=3) if part == 0)
    assert sorted(counts) == [0, 1, 2, 3, 4]
    assert sorted(counts.values()) == [3, 3, 3, 4, 4]


def test_the_draw_depends_on_the_seed_alone():
    assert draw([9, 9], [1, 2], 12, seed=5) == draw([9, 9], [1, 2], 12, seed=5)
    assert draw([9, 9], [1, 2], 12, seed=5) != draw([9, 9], [1, 2], 12, seed=6)


def test_fewer_rows_than_parts_are_refused():
    with pytest.raises(DataError, match=r"max_train: 1 received; a mixture of 2 parts"):
        draw([9, 9], [1, 1], 1, seed=0)


def test_rows_are_drawn_by_weight_and_scored_part_by_part(section):
    data = load_task(section)
    train, validation = data.splits["train"], data.splits["validation"]
    assert Counter(train.parts) == {"copy": 12, "instruction": 4}
    assert validation.parts == ["copy"] * 5 + ["instruction"] * 2
    assert set(data.splits) == {"train", "validation", "copy", "instruction"}
    assert isinstance(validation.of_part("instruction"), ChatRows)
    assert not isinstance(validation.of_part("copy"), ChatRows)
    assert data.splits["copy"].first == validation.of_part("copy").first
    assert [part.as_dict() for part in data.parts] == [
        {"task": "text-generation", "weight": 3.0, "train_rows": 12, "drawn": 12, "validation_rows": 5},
        {"task": "instruction", "weight": 1.0, "train_rows": 4, "drawn": 4, "validation_rows": 2},
    ]
    assert any("instruction: 4 of 4 training rows drawn with seed 0" in note for note in data.notes)


def test_rows_that_are_repeated_are_told(section):
    data = load_task(section.model_copy(update={"max_train": 40}))
    assert len(data.splits["train"]) == 40
    assert "instruction: 4 training rows, each drawn 2 or 3 times: 10 rows in an epoch" in data.notes
    assert "copy: 12 training rows, each drawn 2 or 3 times: 30 rows in an epoch" in data.notes


def test_validation_rows_that_another_part_trains_on_are_told(section):
    first, second = section.parts
    swapped = first.model_copy(update={"title": "again", "train": first.validation, "validation": first.train})
    data = load_task(section.model_copy(update={"parts": [first, second, swapped]}))
    assert any(
        note.startswith("copy: ") and note.endswith("the text of a training row of another part") for note in data.notes
    )
    assert not any("another part" in note for note in load_task(section).notes)


def test_max_eval_limits_every_part(section):
    data = load_task(section.model_copy(update={"max_eval": 1}))
    assert data.splits["validation"].parts == ["copy", "instruction"]


def test_the_checksum_tells_the_seed_and_the_parts_apart(section):
    data = load_task(section)
    assert load_task(section).sha256 == data.sha256
    assert load_task(section.model_copy(update={"draw_seed": 1})).sha256 != data.sha256
    rows = data.splits["validation"]
    moved = replace(rows, parts=["copy"] * 6 + ["instruction"])
    assert rows_sha256({"validation": moved}) != rows_sha256({"validation": rows})


def test_other_rows_of_one_part_are_read_in_its_form(section, tmp_path):
    other = write_jsonl(tmp_path / "other.jsonl", lines(3, seed=9))
    data = load_part_evaluation(section, "copy", other)
    assert isinstance(data.splits["validation"], MixtureRows)
    assert data.splits["validation"].parts == ["copy"] * 3
    with pytest.raises(DataError, match=r"'copi' is not a part of the mixture; did you mean 'copy'"):
        load_part_evaluation(section, "copi", other)


def test_a_sample_has_rows_of_every_part(section):
    rows = load_task(section).splits["validation"].sample(2)
    assert rows.parts == ["copy", "instruction"]


def test_one_of_each_part_in_turn():
    assert in_turn(["a", "a", "a", "b", "b"]) == [0, 3, 1, 4, 2]
    assert in_turn([]) == []


def test_files_of_a_part_are_reported_with_its_faults(section, tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"question": "", "answer": "x"}) + "\n")
    with pytest.raises(DataError, match=r"a\.jsonl"):
        load_task(section)
