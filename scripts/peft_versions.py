"""Run the tuner's tests with several versions of PEFT, transformers and accelerate: `make test-peft-versions`.

Each version of PEFT gets an environment below build/peft-versions: links to the packages that are installed beside this
Python, and a few packages at other versions. Making one takes seconds, and it is kept for the next call.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import os
import platform
import re
import shlex
import subprocess
import sys
import sysconfig
import textwrap
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "peft-versions"
PAGE = ROOT / "docs" / "install.md"
MARKS = ("<!-- versions: written by `make test-peft-versions` -->", "<!-- end of versions -->")

TESTS = ("tests/kasa", "tests/adapters", "tests/contract/test_laws.py")
QUICK = (
    *("tests/kasa/test_registration.py", "tests/kasa/test_model.py", "tests/kasa/test_deferred_tails.py"),
    *("tests/kasa/test_base_state_dict.py", "tests/kasa/test_bases_placement.py", "tests/kasa/test_penalty_trainer.py"),
    *("tests/adapters/test_saving.py", "tests/adapters/test_formats.py"),
)
"""Attaching, saving, loading, exporting and training: what `--quick` runs."""


@dataclass(frozen=True)
class Environment:
    """Packages at other versions than the project's own.

    Attributes:
        trainer: a program for training that pins versions like these.
        packages: requirements that are installed, without their dependencies; the others are those of this Python.
        hidden: modules that are installed beside this Python and do not work with these versions, with the reason.
    """

    trainer: str
    packages: tuple[str, ...]
    hidden: tuple[tuple[str, str], ...] = ()

    @property
    def peft(self) -> str:
        """The version of PEFT."""
        return next((line.partition("==")[2] for line in self.packages if line.startswith("peft==")), version("peft"))


TORCHAO = ("torchao", "PEFT before 0.21 imports classes that torchao 0.18 does not have")
DATASETS = ("datasets", "datasets 5.2 needs huggingface_hub 1.31, and axolotl pins 1.17")
TRL = ("trl", "it needs datasets")

ENVIRONMENTS = (
    Environment(
        "LLaMA-Factory 0.9.5",
        (
            *("peft==0.18.1", "transformers==5.6.0", "accelerate==1.11.0"),
            *("huggingface_hub==1.17.0", "tokenizers==0.22.2"),
        ),
        (TORCHAO, DATASETS, TRL),
    ),
    Environment(
        "ms-swift 4.6",
        ("peft==0.19.1", "transformers==5.19.0"),
        (TORCHAO,),
    ),
    Environment(
        "axolotl 0.19",
        (
            *("peft==0.20.0", "transformers==5.16.1", "accelerate==1.13.0"),
            *("huggingface_hub==1.17.0", "tokenizers==0.23.1"),
        ),
        (TORCHAO, DATASETS, TRL),
    ),
    Environment("this project", ()),
)


class UnreachableIndexError(Exception):
    """pip could not reach the package index."""


@dataclass(frozen=True)
class Outcome:
    """Counts of a test run with one environment."""

    versions: tuple[str, str, str]
    trainer: str
    passed: int
    failed: int
    skipped: int
    seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Return exit status 1 if a test failed or no test ran, 2 for an unknown version, 3 without a package index."""
    parser = argparse.ArgumentParser(prog="scripts/peft_versions.py", description=__doc__)
    parser.add_argument("versions", nargs="*", help="versions of PEFT (default: all)")
    parser.add_argument("--quick", action="store_true", help="tests of attaching, saving, loading and exporting alone")
    parser.add_argument(
        "--skip-offline", action="store_true", help="leave out versions, with a line, if the index cannot be reached"
    )
    parser.add_argument("--write", action="store_true", help="write the table to docs/install.md")
    parser.add_argument("--pip", default="", help="further options of pip, in one string")
    parser.add_argument("--pytest", default="", help="further options of pytest, in one string")
    options = parser.parse_args(arguments)
    known = {environment.peft: environment for environment in ENVIRONMENTS}
    unknown = [name for name in options.versions if name not in known]
    if unknown:
        print(f"PEFT {unknown[0]}: no environment is defined; choose from {', '.join(known)}", file=sys.stderr)
        return 2
    tests = QUICK if options.quick else TESTS
    outcomes: list[Outcome] = []
    for name in options.versions or known:
        try:
            python = make(known[name], shlex.split(options.pip))
        except UnreachableIndexError:
            print(f"NOT TESTED with PEFT {name}: the package index cannot be reached", file=sys.stderr, flush=True)
            if options.skip_offline:
                continue
            return 3
        outcomes.append(run(python, known[name], tests, shlex.split(options.pytest)))
        print("\n".join(table(outcomes)), flush=True)
    if options.write:
        write(outcomes, tests)
    return int(any(outcome.failed or not outcome.passed for outcome in outcomes))


def make(environment: Environment, pip: Sequence[str] = ()) -> Path:
    """Make an environment unless it exists, and return its Python.

    Raises:
        UnreachableIndexError: pip could not reach the package index.
        SystemExit: pip could not install a package for another reason.
    """
    if not environment.packages:
        return Path(sys.executable)
    folder = FOLDER / environment.peft
    host = Path(sysconfig.get_path("purelib"))
    entries = sorted(entry.name for entry in host.iterdir())
    state = hashlib.sha256(repr((environment, platform.python_version(), str(host), entries)).encode()).hexdigest()
    python, stamp = folder / "bin" / "python", folder / "made"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == state:
        return python
    subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", folder], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", *pip]
    done = subprocess.run(
        [*command, "--retries", "2", "--target", site, *environment.packages],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        if "Retrying (" in done.stderr:
            raise UnreachableIndexError
        raise SystemExit(f"pip could not install {' '.join(environment.packages)} (exit status {done.returncode})")
    replaced = {distribution(line.partition("==")[0]) for line in environment.packages}
    replaced |= {module for module, _ in environment.hidden}
    for name in entries:
        package = distribution(re.split(r"-\d", name.removesuffix(".dist-info"))[0])
        if package not in replaced and not (site / name).exists():
            (site / name).symlink_to(host / name)
    stamp.write_text(state, encoding="utf-8")
    return python


def distribution(name: str) -> str:
    """A name as in the names of folders: lower case, with underscores."""
    return name.lower().replace("-", "_")


def run(python: Path, environment: Environment, tests: Sequence[str], flags: Sequence[str]) -> Outcome:
    """Run tests with an environment; reasons of skipped tests are printed."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    report = FOLDER / f"{environment.peft}.xml"
    report.unlink(missing_ok=True)
    for module, reason in environment.hidden:
        print(f"PEFT {environment.peft}: without {module}: {reason}", flush=True)
    path = os.pathsep.join((str(ROOT / "src"), str(ROOT)))
    command = [python, "-m", "pytest", *tests, "-rs", "-p", "no:cacheprovider", f"--junitxml={report}", *flags]
    started = time.monotonic()
    subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, check=False)
    seconds = time.monotonic() - started
    names = ("peft", "transformers", "accelerate")
    code = f"import importlib.metadata as m; print(*(m.version(name) for name in {names!r}))"
    shown = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    counts = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    if report.is_file():
        suites = list(ElementTree.parse(report).getroot().iter("testsuite"))
        counts = {name: sum(int(suite.get(name, 0)) for suite in suites) for name in counts}
    failed = counts["failures"] + counts["errors"]
    passed = counts["tests"] - failed - counts["skipped"]
    return Outcome((shown[0], shown[1], shown[2]), environment.trainer, passed, failed, counts["skipped"], seconds)


def table(outcomes: Sequence[Outcome]) -> list[str]:
    """Markdown: a row for each environment."""
    lines = [
        "| PEFT | transformers | accelerate | versions of | passed | failed | skipped |",
        "|---|---|---|---|---:|---:|---:|",
    ]
    for outcome in outcomes:
        cells = (*outcome.versions, outcome.trainer, *map(str, (outcome.passed, outcome.failed, outcome.skipped)))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def write(outcomes: Sequence[Outcome], tests: Sequence[str]) -> None:
    """Write the table to docs/install.md, between two marks, with the date and the tests that ran."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    names = ", ".join(f"`{name}`" for name in tests)
    title = textwrap.fill(f"Run on {datetime.date.today()}: {names}.", 120, break_long_words=False)
    middle = "\n".join((MARKS[0], "", title, "", *table(outcomes), "", MARKS[1]))
    PAGE.write_text(before + middle + after, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
