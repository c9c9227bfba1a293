"""Run every bad input of the corpus, huge ones included, in a separate process with limits of memory and time.

Run `python -m soak.inputs`. The processes are forked from one that has imported the libraries, which takes seconds; a
dozen of the inputs go through the real command in tests/test_bad_inputs.py.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads do not survive a fork
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["KASATUNE_CACHE"] = "off"

from tests.bad_inputs.corpus import FAMILIES, Case, cases, faults, good_folder, listing

from kasatune.io.library_noise import hush_imports

SECONDS = 120  # processor time
BYTES = 16 << 30  # address space
QUICK = 40  # the quick form tries one input in 40


class Outcome(NamedTuple):
    """The outcome of one bad input: what was wrong with it, processor seconds, and peak memory in bytes."""

    faults: list[str]
    seconds: float
    peak: int


def main(argv: Sequence[str] | None = None) -> int:
    """Try the corpus; return exit status 1 if an input was not refused as it should be."""
    parser = argparse.ArgumentParser(prog="python -m soak.inputs", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few inputs, without writing the record")
    arguments = parser.parse_args(argv)
    hush_imports()
    started = time.perf_counter()
    chosen = cases()[::QUICK] if arguments.quick else cases()
    with tempfile.TemporaryDirectory(prefix="kasatune-inputs-") as folder:
        outcomes = _run_all(chosen, Path(folder))
    for case, outcome in outcomes:
        if outcome.faults:
            print(f"{case.family}: {case.id}: {'; '.join(outcome.faults)}", flush=True)
    failed = sum(bool(outcome.faults) for _, outcome in outcomes)
    print(f"{len(outcomes)} bad inputs, {failed} not refused as they should be", flush=True)
    if not arguments.quick:
        _record(outcomes, time.perf_counter() - started)
    return int(failed > 0)


def _run_all(chosen: Sequence[Case], folder: Path) -> list[tuple[Case, Outcome]]:
    good = folder / "good"
    good.mkdir()
    before = Path.cwd()
    os.chdir(good)
    try:
        good_folder(good)
        return [(case, _run_case(case, good, folder / "place")) for case in chosen]
    finally:
        os.chdir(before)


def _run_case(case: Case, good: Path, place: Path) -> Outcome:
    shutil.copytree(good, place, symlinks=True)
    case.put(place)
    before = listing(place)
    out, err = place.with_name("out"), place.with_name("err")
    child = os.fork()
    if child == 0:
        _in_child(case, place, out, err)
    _, ended, used = os.wait4(child, 0)
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in (out, err)]
    wrong = faults(case, os.waitstatus_to_exitcode(ended), texts[0], texts[1])
    if listing(place) != before:
        wrong.append("something was written")
    shutil.rmtree(place)
    return Outcome(wrong, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)


def _in_child(case: Case, place: Path, out: Path, err: Path) -> None:
    """Run the command line of a case and end this process with its exit status."""
    status = 70
    try:
        os.chdir(place)
        tempfile.tempdir = str(place / "temporary")
        for number, path in ((1, out), (2, err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8") for number in (1, 2))  # noqa: PTH123, SIM115
        resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        from kasatune.cli.main import run

        status = run(case.run)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _record(outcomes: Sequence[tuple[Case, Outcome]], seconds: float) -> None:
    from soak.record import write

    rows = []
    for family in FAMILIES:
        own = [outcome for case, outcome in outcomes if case.family == family]
        rows.append(
            [
                family,
                len(own),
                sum(not outcome.faults for outcome in own),
                f"{max(outcome.seconds for outcome in own):.1f}",
                f"{max(outcome.peak for outcome in own) / 2**20:,.0f}",
            ]
        )
    write(
        part="inputs",
        title="Bad inputs",
        order=40,
        command="python -m soak.inputs",
        text=(
            "Recipes, data files, models, adapters and command lines with one defect each, kept as data in "
            "`tests/bad_inputs` with the words that their error messages must contain. Each must end with exit "
            "status 2 and one message that names the value, the limit and the remedy, without a traceback, and "
            "write nothing. Times are seconds of processor time; memory includes that of the libraries."
        ),
        columns=["family", "inputs", "refused as they should be", "longest, s", "peak memory, MiB"],
        rows=rows,
        totals={"inputs tried": len(outcomes), "lost": 0},
        findings=FINDINGS,
        seconds=seconds,
    )


FINDINGS = [
    "The weights of a model were read from any path in its index; an index may now name only files in its folder.",
    "Weights in a pickle reached PyTorch's restricted loader; they are now refused by their name.",
    "A model without its tokenizer's files was trained on nothing but unknown words; it is refused.",
    "A tokenizer of another model gave token numbers without an embedding; the word and the number are named.",
    "A configuration of a million blocks was built for minutes; the limit is 10,000.",
    "A regular expression as target could match forever; such patterns are refused.",
    "Passwords in addresses and tokens appeared in messages and recipes; they are masked, and refused in recipes.",
    "A name with a terminal control sequence was printed unchanged; it is escaped.",
    "A recipe with five thousand faults gave a message of half a megabyte; twenty are shown and the rest counted.",
    "Texts to predict were read from an endless pipe or a file of any size; the limit is 256 MiB.",
    "A damaged metrics.json gave a TypeError or scores of another kind; its form is checked.",
    "Seeds and numbers of workers with five thousand digits gave a ValueError; they are refused.",
    "A decomposition that failed at its first weight left its folder behind; it is removed.",
    "The commit of a model from the hub was read from a field that transformers no longer sets; fixed.",
]


if __name__ == "__main__":
    raise SystemExit(main())
