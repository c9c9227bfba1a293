"""Make an environment for each foreign trainer that kasatune.integrations supports, for tests/integrations.

python scripts/integration_environments.py DIR [NAME ...]     (`make test-integrations` makes all in .environments)

Each is a virtual environment in DIR/NAME with the trainer and the versions that it pins. Packages that it does not pin
otherwise, torch above all, come from the environment that runs this script, through a .pth file; kasatune comes from
this source tree. An environment that is complete is left as it is.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

TRAINERS = {
    "ms-swift": ["ms-swift==4.6.0"],
    "llama-factory": ["llamafactory==0.9.5"],
    # What Axolotl 0.19 pins or imports on the CPU; the rest of its requirements is for GPUs, clouds and trackers.
    "axolotl": [
        *("peft==0.20.0", "transformers==5.16.1", "accelerate==1.13.0", "trl==1.9.0", "datasets==4.8.4"),
        *("huggingface_hub==1.17.0", "tokenizers==0.23.1", "pydantic==2.12.5", "typer==0.25.1", "torchao==0.17.0"),
        *("kernels>=0.16,<0.17", "triton>=3.4,<3.7", "numba>=0.63.1,<1", "optimum==1.16.2", "mistral-common==1.11.5"),
        *("trackio==0.19.0", "posthog==6.7.11", "wandb", "schedulefree==1.4.1", "fastcore", "addict", "fire", "art"),
        *("axolotl-contribs-lgpl==0.0.7", "axolotl-contribs-mit==0.0.6", "python-dotenv==1.0.1", "zstandard==0.22.0"),
        *("sentencepiece", "nvidia-ml-py==12.560.30", "antlr4-python3-runtime==4.13.2"),
    ],
}
"""What is installed for each trainer, by the name of its environment."""

WITHOUT_REQUIREMENTS = {"axolotl": "axolotl==0.19.0"}
"""Trainers that are installed without what they require, after the packages above."""

HIDDEN = {"ms-swift": ["torchao"], "llama-factory": ["torchao"]}
"""Packages of the environment that runs this script which the trainer's own PEFT cannot use: PEFT before 0.21 fails at
an import of torchao 0.18."""


def main() -> None:
    """Read the command line and make the environments it names."""
    parser = argparse.ArgumentParser(description="Make the environments of tests/integrations.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(TRAINERS)}; all if none is given")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - TRAINERS.keys())
    if unknown:
        parser.error(f"no environment is called {', '.join(unknown)}; choose from {', '.join(TRAINERS)}")
    for name in arguments.names or TRAINERS:
        make(arguments.directory.resolve() / name, TRAINERS[name], WITHOUT_REQUIREMENTS.get(name), HIDDEN.get(name, ()))


def make(directory: Path, requirements: list[str], alone: str | None = None, hidden: Iterable[str] = ()) -> None:
    """Make one environment; `alone` is installed without its requirements, and `hidden` cannot be imported in it.

    Raises:
        SystemExit: pip failed; its last lines are printed.
    """
    stamp = directory / ".installed"
    wanted = "\n".join(filter(None, [*requirements, alone]))
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return
    print(f"{directory}: {', '.join(requirements)} ...", flush=True)
    venv.create(directory, with_pip=True, clear=True)
    python = directory / "bin" / "python"
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(directory), "platbase": str(directory)}))
    # Sorted after the environment's own packages on sys.path, so that those come first.
    (packages / "shared.pth").write_text(f"{ROOT / 'src'}\n{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    if hidden:
        lines = "".join(f"import sys; sys.modules[{name!r}] = None\n" for name in hidden)
        (packages / "hidden.pth").write_text(lines, encoding="utf-8")
    torch = f"torch=={importlib.metadata.version('torch').partition('+')[0]}"
    for call in ([torch, *requirements], ["--no-deps", alone]):
        if call[-1] is None:
            continue
        done = subprocess.run(
            [python, "-m", "pip", "install", "--quiet", *call], capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"{directory.name}: pip failed\n{done.stderr[-3000:]}")
    if importlib.metadata.version("torch").endswith("+cpu"):
        # PyPI's builds are for CUDA and fail beside a CPU build of torch. Training on text does without them, but
        # LLaMA-Factory imports torchaudio.
        pip = [python, "-m", "pip", "uninstall", "--quiet", "--yes"]
        subprocess.run([*pip, "torchvision", "torchaudio"], capture_output=True, check=True)
        (packages / "torchaudio.py").write_text("", encoding="utf-8")
    stamp.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    main()
