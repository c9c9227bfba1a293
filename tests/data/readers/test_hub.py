"""Data sets of the hub, over HTTP: which commit is read, what is told of it, and what is refused."""

from __future__ import annotations

import pytest

from kasatune.data.readers.hub import CONVERTED, HubName, leaves_open, parse_hub_name, read_hub
from kasatune.errors import DataError, WorkError
from tests.hub_server import parquet

FILE = "give a file"


def read(*args, **options):
    return read_hub(*args, instead=FILE, **options)


def words(data, split="train"):
    return data.tables[split]["word"]


@pytest.mark.parametrize("revision", [None, "main", "first"])
def test_the_commit_is_told_and_reads_the_same_rows_when_the_branch_has_moved_on(data_hub, revision):
    commit = data_hub.put_splits("a/b", {"train": [{"word": "old"}], "test": [{"word": "tested"}]})
    revision = commit if revision == "first" else revision
    data = read("a/b", revision=revision)
    assert (data.commit, data.source, data.notes) == (commit, f"a/b@{commit}", ())
    assert (words(data), words(data, "test")) == (["old"], ["tested"])
    data_hub.put_splits("a/b", {"train": [{"word": "new"}]})
    assert words(read("a/b", revision=data.commit)) == ["old"]
    assert words(read("a/b")) == ["new"]


def test_a_data_set_made_by_a_script_is_read_from_the_hubs_own_copy(data_hub):
    data_hub.put("a/b", {"b.py": b"raise SystemExit", "README.md": b""})
    copied = {
        f"{part}/{split}/0000.parquet": parquet([{"word": f"{part} {split}"}])
        for part in ("en", "de")
        for split in ("train", "test")
    }
    commit = data_hub.put("a/b", copied, CONVERTED)
    for revision in (None, CONVERTED, commit):
        data = read("a/b", "en", revision=revision)
        assert data.commit == commit
        assert (words(data), words(data, "test")) == (["en train"], ["en test"])
        assert any("made by a script" in note for note in data.notes) == (revision is None)
    with pytest.raises(DataError, match=rf"a/b, revision main, is made by a script.*revision {CONVERTED}, or {FILE}"):
        read("a/b", "en", revision="main")


def test_a_script_without_a_copy_cannot_be_had(data_hub):
    data_hub.put("a/b", {"b.py": b"", "README.md": b""})
    with pytest.raises(DataError, match=f"a/b is made by a script, of which the hub keeps no copy; {FILE}"):
        read("a/b")


def test_without_a_network_the_cache_is_read_and_never_another_commit(data_hub, request):
    first = data_hub.put_splits("a/b", {"train": [{"word": "first"}]})
    read("a/b")
    request.getfixturevalue("no_network")
    data = read("a/b")
    assert (data.commit, words(data)) == (first, ["first"]) and "local cache" in data.notes[0]
    assert words(read("a/b", revision=first)) == ["first"]
    other = "0" * 40
    with pytest.raises(WorkError, match=f"the local cache holds {first}, not {other}"):
        read("a/b", revision=other)
    with pytest.raises(WorkError, match=rf"c/d could not be had: ConnectionError: .*network, or {FILE}"):
        read("c/d")


@pytest.mark.parametrize(
    ("name", "revision", "reason"),
    [("a/none", None, "such data set.*network, or give a file"), ("a/b", "none", "revision .none. of it")],
)
def test_what_the_hub_has_not_is_told(data_hub, name, revision, reason):
    data_hub.put_splits("a/b", {"train": [{"word": "x"}]})
    with pytest.raises(WorkError, match=f"{name}: the hub has no {reason}"):
        read(name, revision=revision)


def test_names():
    assert parse_hub_name("hub:a/b:train") == HubName("a/b", "train")
    pinned = parse_hub_name("hub:a/b@refs/convert/parquet:train")
    assert pinned == HubName("a/b", "train", CONVERTED) and str(pinned) == "hub:a/b@refs/convert/parquet:train"
    for wrong in ("hub:a/b", "hub::train", "hub:a/b:", "hub:a/b@:train", "a/b:train"):
        with pytest.raises(DataError, match="hub:NAME@REVISION:SPLIT"):
            parse_hub_name(wrong)


@pytest.mark.parametrize(
    ("source", "begun", "open_"),
    [
        ("hub:a/b:train", "hub:a/b@1:train", True),
        ("hub:a/b@2:train", "hub:a/b@1:train", False),
        ("hub:a/b:test", "hub:a/b@1:train", False),
        ("a.csv", "b.csv", False),
        (0.1, "hub:a/b@1:train", False),
    ],
)
def test_a_name_without_a_revision_leaves_it_open(source, begun, open_):
    assert leaves_open(source, begun) is open_
