"""The environments of other trainers, made by scripts/integration_environments.py."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

VARIABLE = "KASATUNE_ENVIRONMENTS"


def foreign_python(name: str) -> Path:
    """The interpreter of a trainer's environment; the test skips if it was not made."""
    directory = os.environ.get(VARIABLE)
    if not directory:
        pytest.skip(f"needs the environment of {name}: `make test-integrations` makes it and sets {VARIABLE}")
    python = Path(directory).resolve() / name / "bin" / "python"
    if not python.is_file():
        pytest.skip(f"{python} does not exist: python scripts/integration_environments.py {directory} {name}")
    return python


def run(python: Path, *arguments: object, cwd: Path) -> str:
    """Standard output and error of a command in a trainer's environment, which must succeed.

    Nothing is downloaded, no GPU is used, and no telemetry is sent.
    """
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "WANDB_MODE": "disabled"}
    clean = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [str(python), *map(str, arguments)],
        cwd=cwd,
        env={**clean, **offline, "PATH": path, "KASATUNE_CACHE": "off"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=3600,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def run_in_one_process(python: Path, *commands: Sequence[object], cwd: Path) -> str:
    """The same for several command lines: the path of a script, or -m and a module, and arguments."""
    lines = json.dumps([[str(argument) for argument in command] for command in commands])
    return run(python, Path(__file__).with_name("one_process.py"), lines, cwd=cwd)
