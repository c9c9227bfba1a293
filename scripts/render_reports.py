"""Render the reports of stored comparisons and reproductions again, with the wording and layout of this version.

`make reports` runs it on the directories under docs/results. Give other directories as arguments:
`python scripts/render_reports.py DIR ...`. Numbers are taken from comparison.json or reproduction.json and stay as they
are; of the stored file, only the conclusion in words is replaced.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from kasatune.errors import KasatuneError
from kasatune.experiments.compare.comparison_file import COMPARISON, read_comparison, write_comparison
from kasatune.experiments.reproduce.reproduction_file import PAGE, REPRODUCTION, read_reproduction
from kasatune.io.atomic import write_text
from kasatune.reports.reproduction import markdown

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"


def render(directory: Path) -> None:
    """Write the reports of `directory` again.

    Raises:
        InputError: its comparison.json or reproduction.json is missing or damaged.
    """
    if (directory / REPRODUCTION).is_file():
        write_text(directory / PAGE, markdown(read_reproduction(directory)))
        return
    read_comparison(directory)  # refuses a damaged file before anything is written
    write_comparison(json.loads((directory / COMPARISON).read_text(encoding="utf-8")), directory)


def main(arguments: list[str]) -> None:
    """Render the given directories, or those under docs/results.

    Raises:
        SystemExit: a file is missing or damaged.
    """
    stored = [path.parent for path in sorted(RESULTS.glob(f"*/{COMPARISON}"))]
    for directory in [Path(argument) for argument in arguments] or stored:
        try:
            render(directory)
        except KasatuneError as error:
            raise SystemExit(str(error)) from None
        print(directory)


if __name__ == "__main__":
    main(sys.argv[1:])
