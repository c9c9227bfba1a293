"""Resolve kasatune's core together with LLaMA-Factory, ms-swift and axolotl: `make test-peft-versions`. Needs network.

Nothing is installed except uv, below build/, where it is missing. tests/test_trainer_pins.py compares the bounds in
pyproject.toml with the pins below, without network.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "uv"

TRAINERS = {
    "LLaMA-Factory 0.9.5": (
        "llamafactory==0.9.5",
        (
            *("accelerate>=1.3.0,<=1.11.0", "datasets>=2.16.0,<=4.0.0", "peft>=0.18.0,<=0.18.1", "torch>=2.4.0"),
            *("transformers>=4.55.0,!=4.57.0,<=5.6.0", "trl>=0.18.0,<=0.24.0"),
        ),
    ),
    "ms-swift 4.6": (
        "ms-swift==4.6.0",
        ("datasets>=4.0,<4.8.5", "peft>=0.11,<0.21", "transformers>=4.33,<5.20.0", "trl>=0.15,<1.0"),
    ),
    "axolotl 0.19": (
        "axolotl==0.19.0",
        (
            *("accelerate==1.13.0", "datasets==4.8.4", "huggingface_hub==1.17.0", "numpy>=2.1,<3.0", "peft==0.20.0"),
            *("tokenizers==0.23.1", "torch>=2.11.0,<=2.13.0", "transformers==5.16.1", "trl==1.9.0"),
        ),
    ),
}
"""By trainer: the requirement of this release, and those of its own requirements that concern us."""

SHOWN = ("peft", "transformers", "accelerate", "torch")


def core() -> list[str]:
    """The requirements of kasatune without extras."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Return exit status 1 if a trainer and the core cannot be installed together."""
    parser = argparse.ArgumentParser(prog="scripts/resolve_with_trainers.py", description=__doc__)
    parser.add_argument("--pip", default="", help="further options of pip, in one string, to install uv")
    uv = find_uv(shlex.split(parser.parse_args(arguments).pip))
    failed = False
    for trainer, (requirement, _) in TRAINERS.items():
        resolved, fault = resolve(uv, [*core(), requirement])
        versions = ", ".join(f"{name} {resolved[name]}" for name in SHOWN if name in resolved)
        print(f"{trainer}: {versions or fault}", flush=True)
        failed = failed or not resolved
    return int(failed)


def find_uv(pip: Sequence[str] = ()) -> str:
    """The path of uv, which is installed below build/ if there is none."""
    local = FOLDER / "bin" / "uv"
    if not local.is_file():
        path = shutil.which("uv")
        if path is not None:
            return path
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", *pip]
        subprocess.run([*command, "--target", FOLDER, "uv"], check=True)
    return str(local)


def resolve(uv: str, requirements: Sequence[str]) -> tuple[dict[str, str], str]:
    """Versions that satisfy the requirements and theirs, by name; empty, with the reason, if there are none."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    command = [uv, "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--python-version", version, "-"]
    done = subprocess.run(
        command, input="\n".join(requirements), env=os.environ, capture_output=True, text=True, check=False
    )
    if done.returncode:
        return {}, done.stderr.strip() or f"uv ended with exit status {done.returncode}"
    lines = [line.split(";")[0].strip() for line in done.stdout.splitlines() if "==" in line]
    return {name: version for name, _, version in (line.partition("==") for line in lines)}, ""


if __name__ == "__main__":
    sys.exit(main())
