"""The short form of the soak: real kills of real processes, and the page that the records make."""

from __future__ import annotations

import os
import random

import pytest
from soak import page
from soak.bench import Bench
from soak.cases import files, left_behind, make_cases
from soak.child import finish, start
from soak.disks import disk_full, no_mount, read_only
from soak.kills import try_case
from soak.peft_adapters import faults_of, try_all


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("soak")
    os.environ.setdefault("KASATUNE_CACHE", "off")

    def run(arguments) -> None:
        assert finish(start(arguments, folder / "log")) == 0, (folder / "log").read_text()

    return {case.name: case for case in make_cases(folder, run)}


@pytest.mark.parametrize("name", ["train, kasa", "merge"])
def test_a_killed_command_started_again_gives_what_it_gives_without_a_kill(name, cases, tmp_path):
    tally = try_case(cases[name], tmp_path / "case", 2, random.Random(3))
    assert tally.kills >= 2
    assert not tally.lost


def test_a_difference_and_what_stays_behind_are_found(cases, tmp_path):
    case = cases["merge"]
    assert finish(start(case.begin(tmp_path / "one"), tmp_path / "log")) == 0
    before = files(tmp_path / "one")
    path = tmp_path / "one" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert [name for name, value in files(tmp_path / "one").items() if value != before[name]] == ["model.safetensors"]
    assert not left_behind(tmp_path / "one")
    (tmp_path / ".one-abc.unfinished").mkdir()
    assert left_behind(tmp_path / "one") == [str(tmp_path / ".one-abc.unfinished")]


@pytest.mark.skipif(bool(no_mount()), reason="no file system can be mounted")
@pytest.mark.parametrize("kind", [disk_full, read_only])
def test_a_command_on_a_faulty_disk_says_so_and_is_given_again(kind, cases, tmp_path):
    bench = Bench(tmp_path, random.Random(32), {name: cases[name] for name in ("decompose", "merge")})
    fault = kind(bench, 1)
    assert fault.injected == fault.compared == 2 and not fault.lost
    assert fault.exit_statuses == {1 if kind is disk_full else 2}


def test_adapters_of_random_peft_configurations_give_pefts_outputs_or_are_refused_by_name():
    results = try_all(range(8))
    assert [fault for result in results for fault in faults_of(result)] == []
    words = [outcome.word for result in results for outcome in result.outcomes.values()]
    assert words.count("equal") > 3
    assert words.count("refused") > 3


@pytest.mark.skipif(not page.PAGE.is_file(), reason="no page yet")
def test_the_page_is_what_the_records_make():
    assert page.PAGE.read_text(encoding="utf-8") == page.page()
