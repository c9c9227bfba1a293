"""Write requirements.lock: the versions of constraints.txt for some extras, with the hashes of their files. Needs uv.

Further arguments go to `uv pip compile`, for example --find-links FOLDER with the build of torch for the CPU, so that
CUDA's packages are not resolved.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
EXTRAS = ("train", "demo", "sft", "judge", "quant", "gguf", "search", "serving", "meteor", "rag", "ui")
HEADER = f"""\
# The extras {", ".join(EXTRAS)} of kasatune at the versions of constraints.txt, for Python 3.11 on Linux,
# without torch, whose build differs between machines: see docs/install.md. Written by `make lock`.
"""


def main(further: list[str]) -> int:
    """Compile the lock with uv; the exit status of uv, or 2 if it is not installed."""
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "lock"
        command = ["uv", "pip", "compile", "--quiet", str(ROOT / "pyproject.toml"), "--output-file", str(written)]
        command += [option for extra in EXTRAS for option in ("--extra", extra)]
        command += ["--constraint", str(ROOT / "constraints.txt"), "--generate-hashes", "--no-header", "--no-annotate"]
        command += ["--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_34"]
        command += ["--no-emit-package", "torch", "--no-emit-package", "kasatune", *further]
        try:
            status = subprocess.run(command, check=False).returncode
        except FileNotFoundError:
            print("uv is not installed: pip install uv", file=sys.stderr)
            return 2
        if status == 0:
            LOCK.write_text(HEADER + written.read_text(encoding="utf-8"), encoding="utf-8")
        return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
