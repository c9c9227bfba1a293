from __future__ import annotations

from typing import NamedTuple

import pytest


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def kasatune(capsys, monkeypatch):
    """Runs the real entry of the command line in this process."""
    from kasatune.cli.main import run

    monkeypatch.delenv("KASATUNE_DEBUG", raising=False)

    def kasatune(*argv: str) -> Outcome:
        capsys.readouterr()
        status = run([str(one) for one in argv])
        return Outcome(status, *capsys.readouterr())

    return kasatune


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty current directory."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return here
