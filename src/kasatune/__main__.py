"""`python -m kasatune` is the command `kasatune`."""

from __future__ import annotations

import sys

from kasatune.cli.main import run

sys.exit(run())
