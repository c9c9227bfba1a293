"""Entry point of the command `kasatune` and of `python -m kasatune`: checks that `kasatune[train]` is installed."""

from __future__ import annotations

import sys

from kasatune.errors import MissingExtraError
from kasatune.io.train_extra import require_train_extra


def run() -> int:
    """Run the command line and return its exit status: 2 if a package is missing, 130 for Ctrl-C during imports."""
    try:
        require_train_extra("the command line")
    except MissingExtraError as fault:
        print(f"error: {fault}", file=sys.stderr)
        return fault.exit_status
    try:
        from kasatune.cli.main import run as run_command
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130

    return run_command()


if __name__ == "__main__":
    sys.exit(run())
