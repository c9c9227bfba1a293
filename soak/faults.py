"""Inject faults of disk, files and signals into real commands; check their messages and the results afterwards.

python -m soak.faults [--quick]
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from kasatune.io.run_layout import METRICS, WORK
from soak.bench import Bench, Fault
from soak.child import finish, start
from soak.disks import disk_full, read_only
from soak.record import write


def damaged(bench: Bench, number: int) -> Fault:
    """Flip a bit of a file of the latest checkpoint or remove half of it, for each file in turn; then --resume."""
    fault = Fault("checkpoint damaged")
    first = bench.new()
    process = start(bench.train.begin(first), bench.folder / "log", save_seconds=0.0)
    while len(list((first / WORK).glob("checkpoint-*/complete.json"))) < 2 and process.is_alive():
        time.sleep(0.01)
    process.kill()
    process.join()
    latest = max((first / WORK).glob("checkpoint-*/complete.json"), key=lambda path: path.stat().st_mtime)
    names = sorted(path.name for path in latest.parent.iterdir())
    for name in names if number > 1 else names[:2]:
        out = bench.new()
        shutil.copytree(first, out)
        path = out / WORK / latest.parent.name / name
        content = bytearray(path.read_bytes())
        if bench.draw.random() < 0.5 or not content:
            content = content[: len(content) // 2]
        else:
            content[bench.draw.randrange(len(content))] ^= 1 << bench.draw.randrange(8)
        path.write_bytes(content)
        fault.injected += 1
        status = bench.run([*bench.train.begin(out), "--resume"])
        fault.exit_statuses.add(status)
        bench.compare(fault, bench.train, out, status)
    return fault


def signals(bench: Bench, number: int) -> Fault:
    """Send SIGINT or SIGTERM at a random moment, also while files are written; then --resume."""
    fault = Fault("SIGINT, SIGTERM")
    for turn in range(3 * number):
        out = bench.new()
        log = out.with_suffix(".log")
        process = start(bench.train.begin(out), log)
        while not log.exists() and process.is_alive():
            time.sleep(0.01)  # until kasatune has started, Python itself handles the signal
        process.join(bench.draw.uniform(0.1, bench.seconds[bench.train.name]))
        if process.pid is not None and process.is_alive():
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM if turn % 2 else signal.SIGINT)
                fault.injected += 1
        status = finish(process)
        fault.exit_statuses.add(status)
        if status not in (0, 130, -signal.SIGTERM, -signal.SIGINT):
            fault.lost.append(f"exit status {status}")
        bench.repeat(fault, bench.train, out)
    return fault


def together(bench: Bench, number: int) -> Fault:
    """Start a second process on the run directory of one that is running; it must be refused."""
    fault = Fault("two processes on one run directory")
    for turn in range(number):
        out = bench.new()
        process = start(bench.train.begin(out), bench.folder / "log")
        while not (out / ".lock").exists() and process.is_alive():
            time.sleep(0.01)
        process.join(bench.draw.uniform(0.0, 0.3 * bench.seconds[bench.train.name]))
        another = [*bench.train.begin(out), "--overwrite" if turn % 2 else "--resume"]
        alive = process.is_alive()
        status = bench.run(another)
        if alive and process.is_alive():
            fault.injected += 1
            fault.exit_statuses.add(status)
            if status != 2:
                fault.lost.append(f"exit status {status} of the second")
        bench.compare(fault, bench.train, out, finish(process))
    return fault


def lost_data(bench: Bench, number: int) -> Fault:
    """Remove or change the training file before a killed run is resumed."""
    fault = Fault("data lost or changed before --resume")
    data = bench.folder / "data" / "train.csv"
    content = data.read_bytes()
    for turn in range(number):
        out = bench.new()
        process = start(bench.train.begin(out), bench.folder / "log", save_seconds=0.0)
        while not list((out / WORK).glob("checkpoint-*/complete.json")) and process.is_alive():
            time.sleep(0.01)
        process.kill()
        process.join()
        if turn % 2:
            data.write_bytes(content + b"good good,label1\n")
        else:
            data.unlink()
        status = bench.run([*bench.train.begin(out), "--resume"])
        data.write_bytes(content)
        fault.injected += 1
        fault.exit_statuses.add(status)
        if status != 2:
            fault.lost.append(f"exit status {status}")
        bench.repeat(fault, bench.train, out)
    return fault


def diverging(bench: Bench, number: int) -> Fault:
    """Train with a learning rate at which every run diverges."""
    fault = Fault("loss not finite")
    for turn in range(number):
        out = bench.new()
        log = out.with_suffix(".log")
        rate = ("1e38", "1e30", "1e25")[turn % 3]
        status = bench.run(
            ["train", str(bench.folder / "full.yaml"), f"training.learning_rate={rate}", "--out", str(out)], log
        )
        fault.injected += 1
        fault.exit_statuses.add(status)
        text = log.read_text(encoding="utf-8")
        if status != 1 or "is not finite at step" not in text:
            fault.lost.append(f"exit status {status}: {text[-200:]!r}")
        elif (out / METRICS).exists() and bench.run(["evaluate", str(out)], log):
            fault.lost.append("the state that was kept cannot be evaluated")
    return fault


KINDS: tuple[Callable[[Bench, int], Fault], ...] = (
    disk_full,
    read_only,
    damaged,
    signals,
    together,
    lost_data,
    diverging,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Inject every kind of fault and write the record; return exit status 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=6, help="injections of each kind, or a multiple of it")
    parser.add_argument("--quick", action="store_true", help="one of each kind, without writing the record")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    os.environ.setdefault("KASATUNE_CACHE", "off")
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="kasatune-soak-") as folder:
        bench = Bench(Path(folder), random.Random(given.seed))
        faults = []
        for kind in KINDS:
            faults.append(fault := kind(bench, 1 if given.quick else given.number))
            summary = f"{fault.injected} injected, {fault.compared} compared, lost: {fault.lost or 'nothing'}"
            print(f"{fault.name}: {fault.skipped or summary}", flush=True)
    lost = sum(len(fault.lost) for fault in faults)
    write(
        part="faults",
        title="Faults of disk, files and signals",
        order=20,
        command=f"python -m soak.faults --number {given.number} --seed {given.seed}",
        text=(
            "Each fault is injected into a real command, which must end with its exit status and one message. "
            "Then the fault is removed, the command is repeated, and the result is compared with that of a run "
            "without the fault, as for the kills. A full disk is a file system of 4 to 120 KiB under `train`, "
            "`decompose`, `export` and `merge`; a read-only one is under those and `compare`, before they start "
            "or before a killed one resumes, and nothing may be written. A damaged checkpoint has one bit "
            "flipped or half of its content removed, in each of its files in turn."
        ),
        columns=["fault", "injected", "exit statuses", "results compared", "lost"],
        rows=[
            [
                f.name,
                f.skipped or f.injected,
                ", ".join(map(str, sorted(f.exit_statuses))),
                f.compared or "",
                len(f.lost),
            ]
            for f in faults
        ],
        totals={"faults injected": sum(fault.injected for fault in faults), "lost": lost},
        findings=[
            "A damaged checkpoint could be loaded: every file now has a SHA-256, and the checkpoint before it is used.",
            "Two processes could write one run directory: the second is refused, with the process number of the first.",
            "A run could be resumed with other rows than it was started with: refused.",
            "SIGTERM ended a run at once: it now stops at the next step, as after Ctrl-C.",
            "A learning rate of 1e38 gave an error of PyTorch: it is a divergence now, with the state before it kept.",
            "Without an earlier evaluation, the weights that made the loss NaN were kept: now those before them are.",
        ],
        seconds=time.perf_counter() - began,
        quick=given.quick,
    )
    return int(lost > 0)


if __name__ == "__main__":
    raise SystemExit(main())
