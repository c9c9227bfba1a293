"""The environments of other trainers, made by scripts/integration_environments.py."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
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


def run(python: Path, *arguments: object, cwd: Path, env: Mapping[str, str] | None = None) -> str:
    """Standard output and error of a command in a trainer's environment, which must succeed.

    Nothing is downloaded, no GPU is used, and no telemetry is sent.
    """
    done = attempt(python, *arguments, cwd=cwd, env=env)
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def attempt(
    python: Path, *arguments: object, cwd: Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """A command in a trainer's environment, its standard error within `stdout`."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "WANDB_MODE": "disabled"}
    clean = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [str(python), *map(str, arguments)],
        cwd=cwd,
        env={**clean, **offline, "PATH": path, "KASATUNE_CACHE": "off", **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=1200,
    )
