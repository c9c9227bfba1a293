"""Start `kasatune` commands as processes that outlive the page, read their output, and stop them."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kasatune.errors import InputError, OutputError
from kasatune.io.locks import holder_here
from kasatune.redaction import printable

_LOG_TAIL = 16 << 10
MOST_JOBS = 8
"""Commands that run at a time."""
INTERRUPTED = (130, -signal.SIGINT)
"""Exit statuses of a command that was stopped by Ctrl-C."""


def command_line(arguments: Sequence[str]) -> str:
    """The command with these arguments, to copy into a shell."""
    return shlex.join(["kasatune", *arguments])


@dataclass
class Job:
    """A command that the page started.

    Attributes:
        arguments: of `kasatune`.
        log: file of its standard output and standard error.
        process: the process.
    """

    arguments: tuple[str, ...]
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def exit_status(self) -> int | None:
        """None while it runs."""
        return self.process.poll()


@dataclass
class Jobs:
    """The commands that this page has started.

    Attributes:
        root: their working directory.
        started: by name.
    """

    root: Path
    started: dict[str, Job] = field(default_factory=dict)

    def start(self, name: str, arguments: Sequence[str], log: Path) -> Job:
        """Start a command in a session without terminal, so that it continues when the page ends.

        Args:
            name: of what it writes; one command at a time may have it.
            arguments: of `kasatune`.
            log: file for its output, relative to the root; continued if it exists.

        Raises:
            InputError: a command of this name is running, or too many commands are.
            OutputError: the log cannot be written.
        """
        if self.is_running(name):
            raise InputError(f"{name} is running; wait for it or stop it")
        if sum(job.exit_status is None for job in self.started.values()) >= MOST_JOBS:
            raise InputError(f"{MOST_JOBS} commands are running, the most at a time; wait for one or stop it")
        path = self.root / log
        try:
            path.parent.mkdir(exist_ok=True)
            with path.open("ab") as output:
                output.write(f"$ {command_line(arguments)}\n".encode())
                output.flush()
                process = subprocess.Popen(
                    [sys.executable, "-m", "kasatune", *arguments],
                    cwd=self.root,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env={**os.environ, "COLUMNS": "100", "PYTHONUNBUFFERED": "1"},
                )
        except OSError as fault:
            raise OutputError(f"{log} cannot be written ({fault.strerror}); free some space") from fault
        self.started[name] = Job(tuple(arguments), path, process)
        return self.started[name]

    def is_running(self, name: str) -> bool:
        """Whether a command of this name was started by this page and has not ended."""
        job = self.started.get(name)
        return job is not None and job.exit_status is None

    def exit_status(self, name: str) -> int | None:
        """The exit status of the command of this name; None if it runs or was not started by this page."""
        job = self.started.get(name)
        return None if job is None else job.exit_status

    def stop(self, name: str, directory: Path) -> None:
        """Interrupt the command that writes a directory, as Ctrl-C does: a run saves its state and can be resumed.

        Args:
            name: of the command.
            directory: the directory, relative to the root; its lock names the process if an earlier page started it.

        Raises:
            InputError: no process of this machine writes it.
        """
        job = self.started.get(name)
        number = job.process.pid if job is not None and job.exit_status is None else holder_here(self.root / directory)
        if number is None or number == os.getpid():
            raise InputError(f"{directory} is not being written by a process of this machine")
        try:
            os.kill(number, signal.SIGINT)
        except OSError as fault:
            raise InputError(f"process {number} cannot be stopped ({fault.strerror})") from fault


def log_tail(path: Path) -> str:
    """The last part of a log, printable; "" if there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _LOG_TAIL))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return printable("\n".join(lines[1:] if size > _LOG_TAIL else lines)).strip()
