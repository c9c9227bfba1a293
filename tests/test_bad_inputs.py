"""Every bad input ends with its exit status and one message, in bounded time, and writes nothing."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
import tempfile
import time

import pytest

from kasatune.cli.main import run
from tests.bad_inputs.corpus import cases, faults, good_folder, listing

SECONDS = 120  # a machine that is busy with other things is no fault
SHORT = [case for case in cases() if not case.long]
# Of the families that load libraries and models every third takes part here; `make soak` tries them all.
EVERY = {"data": 3, "models": 3, "adapters": 3}
CASES = [case for number, case in enumerate(SHORT) if number % EVERY.get(case.family, 1) == 0]
# These go through the command itself, under limits of memory and processor time.
REAL = [
    "recipes: rank is quoted",
    "recipes: a misspelt section",
    "recipes: a billion laughs",
    "recipes: a Python object",
    "recipes: a password in the model's address",
    "recipes: a pattern that never ends",
    "recipes: a recipe of a megabyte",
    "commands: an unknown command",
    "commands: a recipe that is a device",
    "commands: a file of texts that is a pipe",
    "models: weights as a pickle",
    "adapters: a header that claims eight exabytes",
]
MEMORY = 12 << 30  # of addresses, of which torch alone reserves several gigabytes


@pytest.fixture(scope="session")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return good_folder(folder)


@pytest.fixture
def place(good, tmp_path, monkeypatch):
    folder = tmp_path / "place"
    shutil.copytree(good, folder, symlinks=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.delenv("KASATUNE_DEBUG", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "temporary"))
    yield folder
    shutil.rmtree(folder)


def named(case) -> str:
    return f"{case.family}: {case.id}"


@pytest.mark.parametrize("case", CASES, ids=named)
def test_is_refused_in_words(case, place, capsys):
    case.put(place)
    before = listing(place)
    started = time.perf_counter()
    status = run(case.run)
    assert time.perf_counter() - started < SECONDS
    assert faults(case, status, *capsys.readouterr()) == []
    assert listing(place) == before


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))


@pytest.mark.parametrize("name", REAL)
def test_is_refused_by_the_command(name, place):
    case = next(case for case in SHORT if named(case) == name)
    case.put(place)
    before = listing(place)
    done = subprocess.run(
        [sys.executable, "-m", "kasatune", *case.run],
        capture_output=True,
        text=True,
        preexec_fn=limited,
        timeout=4 * SECONDS,
    )
    assert faults(case, done.returncode, done.stdout, done.stderr) == []
    assert listing(place) == before


def test_the_good_inputs_are_good(place, capsys):
    assert run(["plan", "good.yaml"]) == 0
    assert run(["inspect", "kasa", "--base", "model"]) == 0
    assert run(["predict", "run", "--text", "good"]) == 0


def test_there_are_enough_of_them():
    assert len(CASES) >= 150
    assert {case.family for case in CASES} == {"recipes", "data", "models", "adapters", "commands"}
