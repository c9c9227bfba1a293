from __future__ import annotations

import json
import math

import pytest

from kasatune.errors import InputError
from kasatune.runs.history import EvaluateEvent, History, HistoryEvent, SigmaEvent, TrainEvent, read_history
from tests.reports import sample_runs


@pytest.fixture
def path(tmp_path):
    return tmp_path / "history.jsonl"


def write(path, *lines):
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def test_history_is_rewound_to_a_step_and_survives_a_cut_line(tmp_path):
    history = History(tmp_path / "history.jsonl")
    assert history.events() == []
    for step in (0, 1, 2, 3):
        history.add(TrainEvent(step=step, loss=math.nan if step == 2 else 0.5))
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('{"event": "tr')
    assert [event.step for event in history.events()] == [0, 1, 2, 3]
    history.rewind(2)
    history.add(TrainEvent(step=3))
    assert [event.step for event in history.events()] == [0, 1, 2, 3]
    assert history.events()[2].loss is None


def test_events_of_the_first_versions_without_schema_version_are_read(path):
    layers = sample_runs.spectrum(layers=1, k=8, r=2)["layers"]
    lines = [json.dumps(event) for event in sample_runs.history(layers, epochs=1, steps_an_epoch=2)]
    assert not any("schema_version" in line for line in lines)
    write(path, *lines)
    events = read_history(path)
    assert [type(event) for event in events] == [SigmaEvent, TrainEvent, TrainEvent, EvaluateEvent, SigmaEvent]
    assert {event.schema_version for event in events} == {1}
    assert [event.model_dump(exclude_unset=True) for event in events] == [json.loads(line) for line in lines]


def test_an_event_of_an_unknown_kind_keeps_its_entries(path):
    line = {"event": "note", "step": 3, "text": "a line separator \u2028 inside"}
    write(path, json.dumps(line, ensure_ascii=False))
    (event,) = read_history(path)
    assert type(event) is HistoryEvent
    assert event.model_dump(exclude_unset=True) == line


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"event": "tr', "not an event as JSON"),
        ("[1]", "not an event as JSON"),
        ('{"step": 1}', "not an event as JSON: 'event'"),
        ('{"event": "train", "loss": "low"}', "wrong or missing: loss"),
        ('{"event": "train", "schema_version": "x"}', "wrong or missing: schema_version"),
    ],
)
def test_a_damaged_line_is_named_with_its_number(path, line, fault):
    good = '{"event": "train", "step": 1}'
    write(path, good, line, good)
    with pytest.raises(InputError, match=rf"history\.jsonl, line 2, is damaged \({fault}.*remove that line") as caught:
        read_history(path)
    assert "\n" not in str(caught.value)


def test_a_complete_last_line_without_a_line_end_counts(path):
    path.write_text('{"event": "train", "step": 1}', encoding="utf-8")
    assert [event.step for event in read_history(path)] == [1]


def test_bytes_that_are_not_text_are_damage(path):
    path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(InputError, match="line 1, is damaged"):
        read_history(path)


def test_an_event_of_a_later_version_is_refused_with_what_to_do(path):
    write(path, '{"event": "train", "schema_version": 1}', '{"event": "train", "schema_version": 2, "loss": {}}')
    with pytest.raises(InputError, match=r"line 2, has schema_version 2, .* reads up to 1; .* upgrade kasatune"):
        read_history(path)
