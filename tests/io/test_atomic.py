from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from kasatune.errors import OutputError
from kasatune.io import atomic


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_and_what_a_killed_process_left_is_gone(tmp_path):
    target = tmp_path / "file"
    atomic.write_text(target, "old")
    (tmp_path / ".file.unfinished").write_text("of a process that was killed", encoding="utf-8")
    atomic.write_text(target, "new")
    assert target.read_text(encoding="utf-8") == "new"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("shared", [False, True])
def test_a_write_that_fails_leaves_the_old_content_and_nothing_else(tmp_path, shared):
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(KeyError), atomic.atomic_write(target, shared=shared) as temporary:
        assert atomic.is_temporary(temporary)
        temporary.write_text("half")
        raise KeyError
    assert target.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_processes_that_share_a_target_write_under_different_names(tmp_path):
    target = tmp_path / "file"
    with atomic.atomic_write(target, shared=True) as first, atomic.atomic_write(target, shared=True) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert target.read_text() == "first", "the outer block ends last"
    assert names(tmp_path) == ["file"]


def test_an_error_names_the_target_and_not_the_temporary_file(tmp_path):
    with pytest.raises(OSError, match="No such file") as caught:
        atomic.write_text(tmp_path / "absent" / "file", "text")
    assert caught.value.filename == str(tmp_path / "absent" / "file")


def test_a_file_of_safetensors_can_be_read_as_the_umask_allows(tmp_path):
    with atomic.atomic_write(tmp_path / "file") as temporary:
        save_file({"x": torch.zeros(1)}, temporary)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~atomic.umask()


def test_json_has_null_for_numbers_that_it_cannot_hold(tmp_path):
    atomic.write_json(tmp_path / "a.json", {"x": [math.nan, 1.5], "y": -math.inf})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": [None, 1.5], "y": None}
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_path_is_replaced_by_another(tmp_path, kind):
    source, target = tmp_path / "source", tmp_path / "out" / "target"
    target.parent.mkdir()
    for path, text in ((source, "new"), (target, "old")):
        if kind == "directory":
            path.mkdir()
        (path / text if kind == "directory" else path).write_text(text)
    atomic.replace_path(source, target)
    assert (names(target) if kind == "directory" else target.read_text()) == (["new"] if kind == "directory" else "new")
    assert names(tmp_path) == ["out"]
    assert names(target.parent) == ["target"]


def test_removing_a_link_leaves_its_target(tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    atomic.remove(tmp_path / "link")
    atomic.remove(tmp_path / "absent")
    assert names(tmp_path) == ["target"]


def test_unfinished_files_and_directories_are_removed_and_no_others(tmp_path):
    for name in (".a.unfinished", "b", ".c", "d.unfinished"):
        (tmp_path / name).write_text("")
    (tmp_path / ".e.7.unfinished").mkdir()
    os.utime(tmp_path / ".a.unfinished", (100, 100))
    atomic.remove_unfinished(tmp_path, before=200)
    assert names(tmp_path) == [".c", ".e.7.unfinished", "b", "d.unfinished"]
    atomic.remove_unfinished(tmp_path)
    assert names(tmp_path) == [".c", "b", "d.unfinished"]


def test_a_new_directory_appears_when_it_is_complete(tmp_path):
    out = tmp_path / "deep" / "out"
    with atomic.new_directory(out) as temporary:
        (temporary / "file").write_text("text")
        assert not out.exists()
    assert names(out) == ["file"]
    assert names(out.parent) == ["out"]


def test_a_new_directory_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), atomic.new_directory(tmp_path / "out") as temporary:
        (temporary / "file").write_text("text")
        raise KeyError
    assert names(tmp_path) == []


@pytest.mark.parametrize("taken", ["file", "full", "link"])
def test_an_occupied_path_is_refused(tmp_path, taken):
    out = tmp_path / "out"
    if taken == "file":
        out.write_text("")
    elif taken == "full":
        out.mkdir()
        (out / "file").write_text("")
    else:
        out.symlink_to(tmp_path)
    with pytest.raises(OutputError, match="exists and is not empty"), atomic.new_directory(out):
        raise AssertionError("not reached")


def test_only_directories_of_processes_that_ended_are_removed(tmp_path):
    """A killed process leaves its directory; the next start removes it, and not one that is being written."""
    out = tmp_path / "out"
    code = (
        "import os, sys; from pathlib import Path; from kasatune.io.atomic import new_directory\n"
        "with new_directory(Path(sys.argv[1])): os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(out)], check=False).returncode == 9
    (left,) = tmp_path.iterdir()
    assert atomic.is_temporary(left)
    with atomic.new_directory(out) as first:
        assert list(tmp_path.iterdir()) == [first]
        with pytest.raises(KeyError), atomic.new_directory(out) as second:
            assert set(tmp_path.iterdir()) == {first, second}
            raise KeyError
    assert names(tmp_path) == ["out"]
