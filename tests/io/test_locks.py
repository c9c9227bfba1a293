from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager

import pytest

from kasatune.errors import OutputError
from kasatune.io.locks import LOCK, directory_lock, require_unlocked

HOLD = (
    "import sys; from pathlib import Path; from kasatune.io.locks import directory_lock\n"
    "with directory_lock(Path(sys.argv[1])): print('locked', flush=True); sys.stdin.read()"
)


@contextmanager
def other_process(out):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout and process.stdout.readline() == "locked\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_directory_is_locked_against_other_processes_and_the_message_names_the_holder(tmp_path):
    with other_process(tmp_path) as process:
        for check in (
            lambda: directory_lock(tmp_path, what="comparison").__enter__(),
            lambda: require_unlocked(tmp_path),
        ):
            with pytest.raises(OutputError, match=rf"process {process.pid} on .* is working on this (comparison|run)"):
                check()


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    with other_process(tmp_path):
        pass
    assert (tmp_path / LOCK).exists()
    require_unlocked(tmp_path)
    with directory_lock(tmp_path):
        pass
    assert not (tmp_path / LOCK).exists()


def test_looking_for_a_lock_writes_nothing(tmp_path):
    require_unlocked(tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_locks_nothing_is_locked_and_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr("kasatune.io.locks.fcntl", None)
    with directory_lock(tmp_path), directory_lock(tmp_path):
        require_unlocked(tmp_path)
    assert not list(tmp_path.iterdir())
