"""kasatune's core can be installed beside the versions that other training programs pin, and is tested with them."""

from __future__ import annotations

import datetime
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


trainers = script("resolve_with_trainers")
versions = script("peft_versions")


def bounds(lines: list[str] | tuple[str, ...]) -> dict[str, SpecifierSet]:
    return {canonicalize_name(Requirement(line).name): Requirement(line).specifier for line in lines}


CORE = bounds(trainers.core())
PINS = {trainer: bounds(pins) for trainer, (_, pins) in trainers.TRAINERS.items()}


def overlap(one: SpecifierSet, other: SpecifierSet) -> bool:
    """Whether a version that one of the two names satisfies both: enough where lower bounds are inclusive."""
    named = [specifier.version for specifier in [*one, *other]]
    return any(version in one and version in other for version in named)


@pytest.mark.parametrize("trainer", PINS)
def test_the_bounds_of_the_core_overlap_with_the_pins_of_a_trainer(trainer):
    shared = CORE.keys() & PINS[trainer].keys()
    assert {"peft", "transformers"} <= shared
    assert [name for name in shared if not overlap(CORE[name], PINS[trainer][name])] == []


def test_bounds_without_a_common_version_are_recognized():
    assert not overlap(SpecifierSet(">=0.21.2,<0.22"), PINS["ms-swift 4.6"]["peft"])
    assert not overlap(SpecifierSet(">=1.15,<1.16"), PINS["LLaMA-Factory 0.9.5"]["accelerate"])


@pytest.mark.parametrize("trainer", PINS)
def test_the_versions_that_are_tested_are_those_that_a_trainer_and_the_core_allow(trainer):
    (environment,) = [one for one in versions.ENVIRONMENTS if one.trainer == trainer]
    tested = dict(line.split("==") for line in environment.packages)
    assert {"peft", "transformers"} <= tested.keys()
    for allowed in (CORE, PINS[trainer]):
        assert [name for name, version in tested.items() if version not in allowed.get(name, SpecifierSet())] == []


def test_the_lowest_version_that_the_core_allows_is_tested():
    tested = [dict(line.split("==") for line in environment.packages) for environment in versions.ENVIRONMENTS]
    for name in ("accelerate", "peft", "transformers"):
        (lowest,) = [specifier.version for specifier in CORE[name] if specifier.operator == ">="]
        assert any(SpecifierSet(f"=={lowest}").contains(packages.get(name, "0")) for packages in tested), name


def test_the_table_has_a_row_for_each_environment_and_replaces_the_one_in_the_page(tmp_path, monkeypatch):
    page = tmp_path / "install.md"
    page.write_text(f"before\n{versions.MARKS[0]}\n\nan old table\n\n{versions.MARKS[1]}\nafter\n", encoding="utf-8")
    monkeypatch.setattr(versions, "PAGE", page)
    versions.write(
        [versions.Outcome(("0.18.1", "5.6.0", "1.11.0"), "LLaMA-Factory 0.9.5", 7, 0, 2, 3.0)], ["tests/kasa"]
    )
    text = page.read_text(encoding="utf-8")
    assert "| 0.18.1 | 5.6.0 | 1.11.0 | LLaMA-Factory 0.9.5 | 7 | 0 | 2 |" in text
    assert f"Run on {datetime.date.today()}: `tests/kasa`." in text
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text


def test_an_unknown_version_is_refused_with_those_that_are_defined(capsys):
    assert versions.main(["0.17.0"]) == 2
    assert "0.18.1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("said", "options", "status"),
    [
        ("WARNING: Retrying (Retry(total=1)) after connection broken by 'NewConnectionError'", [], 3),
        ("WARNING: Retrying (Retry(total=1)) after connection broken", ["--skip-offline"], 0),
        ("ERROR: No matching distribution found for peft==0.18.1", ["--skip-offline"], "pip could not install"),
    ],
)
def test_a_missing_package_index_is_told_from_a_missing_package(tmp_path, monkeypatch, capsys, said, options, status):
    def fake_run(command, **_):
        (tmp_path / "0.18.1" / "lib" / "python3" / "site-packages").mkdir(parents=True, exist_ok=True)
        return subprocess.CompletedProcess(command, int("pip" in command), "", said)

    monkeypatch.setattr(versions, "FOLDER", tmp_path)
    monkeypatch.setattr(versions.subprocess, "run", fake_run)
    if isinstance(status, str):
        with pytest.raises(SystemExit, match=status):
            versions.main(["0.18.1", *options])
        return
    assert versions.main(["0.18.1", *options]) == status
    assert "NOT TESTED with PEFT 0.18.1: the package index cannot be reached" in capsys.readouterr().err
