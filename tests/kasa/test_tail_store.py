"""Tails kept between models and processes: found by the weight's values, never trusted damaged, bounded in size."""

from __future__ import annotations

import multiprocessing
import os

import pytest
import torch
from peft import get_peft_model
from torch import nn

from kasatune import KasaConfig, tail_svd
from kasatune.errors import InputError, ModelError
from kasatune.io.progress import progress_listener
from kasatune.kasa.truncation.tail_store import TailCache, TailKey, read_tail, write_tail

WIDTH = 256


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KASATUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tails"


def model(width=WIDTH, dtype=torch.float32):
    torch.manual_seed(0)
    layers = {"first": nn.Linear(width, width), "second": nn.Linear(width, width + 8)}
    return nn.Sequential(nn.ModuleDict(layers)).to(dtype)


def adapter(base, r=4, **options):
    torch.manual_seed(1)
    found = get_peft_model(base, KasaConfig(r=r, target_modules=["first", "second"], **options))
    return {name: tensor for name, tensor in found.state_dict().items() if ".kasa_" in name}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_weight_is_decomposed_once(cache, decompositions, monkeypatch):
    first = adapter(model())
    assert sorted(decompositions) == ["0.first", "0.second"]
    again = adapter(model())
    assert sorted(decompositions) == ["0.first", "0.second"]
    assert same(first, again)
    monkeypatch.setenv("KASATUNE_CACHE", "off")
    assert same(first, adapter(model()))
    assert len(decompositions) == 4


def test_another_rank_or_value_is_decomposed_anew(cache, decompositions):
    adapter(model())
    adapter(model(), r=5)
    assert len(decompositions) == 4
    changed = model()
    with torch.no_grad():
        changed[0]["first"].weight[3, 5] += 1e-3
    adapter(changed)
    assert decompositions[4:] == ["0.first"]


def test_conventions_that_drop_the_same_share_a_tail(cache, decompositions):
    adapter(model())
    adapter(model(), convention="authors")
    assert decompositions[2:] == []


def test_small_weights_are_not_worth_a_file(cache):
    adapter(model(width=64))
    assert not cache.exists()


def test_off_means_off(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("KASATUNE_CACHE", "off")
    adapter(model())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "swapped"])
def test_a_damaged_file_is_computed_again_and_said_so(cache, decompositions, damage):
    good = adapter(model())
    files = sorted(cache.iterdir())
    content = files[0].read_bytes()
    if damage == "cut":
        files[0].write_bytes(content[:-100])
    elif damage == "flipped":
        files[0].write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
    elif damage == "empty":
        files[0].write_bytes(b"")
    else:
        files[0].write_bytes(files[1].read_bytes())
    with pytest.warns(UserWarning, match="a cached tail is computed again"):
        again = adapter(model())
    assert len(decompositions) == 3
    assert same(good, again)
    assert files[0].read_bytes() == content


def test_a_folder_that_cannot_be_written_keeps_nothing_and_fails_nothing(tmp_path, monkeypatch, decompositions):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KASATUNE_CACHE", str(tmp_path / "file"))
    adapter(model())
    adapter(model())
    assert len(decompositions) == 4


def test_the_least_recently_used_make_room(tmp_path):
    key = [TailKey(str(n) * 64, (300, 300), 2) for n in range(4)]
    tail = tail_svd(torch.randn(300, 300), 2)
    size = write_tail(tmp_path, key[3], tail).stat().st_size
    cache = TailCache(tmp_path / "tails", limit=int(2.5 * size))
    for n in range(2):
        cache.put(key[n], tail)
        os.utime(cache.folder / key[n].filename, (n, n))
    abandoned = cache.folder / ".x.unfinished"
    abandoned.write_text("")
    os.utime(abandoned, (0, 0))
    assert cache.get(key[0]) is not None  # used now, so that the second is the oldest
    cache.put(key[2], tail)
    cache.trim()
    assert sorted(p.name for p in cache.folder.iterdir()) == sorted([key[0].filename, key[2].filename])


def write_often(folder, key, tail, times):
    for _ in range(times):
        write_tail(folder, key, tail)


def test_two_processes_write_and_read_one_file(tmp_path):
    W = torch.randn(300, 300)
    key, tail = TailKey.of(W, 3), tail_svd(W, 3)
    write_tail(tmp_path, key, tail)
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_often, args=(tmp_path, key, tail, 100)) for _ in range(2)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        found = read_tail(tmp_path / key.filename, key)
        assert found is not None and all(map(torch.equal, found, tail))
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert [p.name for p in tmp_path.iterdir()] == [key.filename]


def test_a_file_of_another_weight_is_refused(tmp_path):
    W = torch.randn(20, 20)
    one, other = TailKey.of(W, 2), TailKey.of(2 * W, 2)
    write_tail(tmp_path, one, tail_svd(W, 2)).rename(tmp_path / other.filename)
    assert read_tail(tmp_path / one.filename, one) is None
    with pytest.raises(ModelError, match="of another weight"):
        read_tail(tmp_path / other.filename, other)


def test_where_the_cache_is(monkeypatch, tmp_path):
    def folder():
        found = TailCache.of_user()
        return None if found is None else found.folder

    monkeypatch.setenv("KASATUNE_CACHE", str(tmp_path))
    assert folder() == tmp_path / "tails"
    monkeypatch.delenv("KASATUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert folder() == tmp_path / "kasatune" / "tails"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folder() == tmp_path / ".cache" / "kasatune" / "tails"
    monkeypatch.setenv("KASATUNE_CACHE_LIMIT", "0.5")
    assert getattr(TailCache.of_user(), "limit", 0) == 2**29
    for bad in ("much", "-1", "inf"):
        monkeypatch.setenv("KASATUNE_CACHE_LIMIT", bad)
        with pytest.raises(InputError, match="KASATUNE_CACHE_LIMIT"):
            TailCache.of_user()


def test_progress_goes_to_a_listener(cache):
    reports = []
    with progress_listener(lambda *report: reports.append(report)):
        adapter(model())
        adapter(model())
    assert reports == [("decomposing", done, 2) for done in range(3)] * 2


def test_quick_work_shows_no_bar(capsys):
    adapter(model())
    assert capsys.readouterr().err == ""
