"""Run every part of the soak in turn, then write docs/reliability.md.

python -m soak [--quick]
"""

from __future__ import annotations

import subprocess
import sys

from soak.page import main as write_page

PARTS = ("kills", "faults", "processes", "inputs", "fuzz", "peft_adapters")


def main() -> int:
    """Return exit status 1 if a part lost a result or failed."""
    failed = []
    for part in PARTS:
        print(f"soak: {part}", flush=True)
        if subprocess.run([sys.executable, "-m", f"soak.{part}", *sys.argv[1:]], check=False).returncode:
            failed.append(part)
    write_page()
    if failed:
        print(f"soak: {', '.join(failed)} FAILED", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
