"""Write docs/reliability.md from the records of the soak.

python -m soak.page
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from soak.record import RECORDS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reliability.md"
_HEAD = """# Reliability: kills, faults and bad inputs

Written by `python -m soak.page` from `docs/results/reliability/*.json`, which `make soak` measures. The tests contain a
short form of every part except the inputs drawn at random.

"""


def page() -> str:
    """Return the page made from the records."""
    records = sorted((json.loads(path.read_text(encoding="utf-8")) for path in RECORDS.glob("*.json")), key=_order)
    totals: Counter[str] = Counter()
    for record in records:
        totals.update(record["totals"])
    lost = totals.pop("lost", 0)
    if not records:
        return _HEAD + "Nothing has been measured yet.\n"
    rows = [*sorted(totals.items()), ("**lost**", f"**{lost or 'nothing'}**")]
    return _HEAD + _table(["in total", ""], rows) + "".join(_section(record) for record in records)


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


def _order(record: dict[str, Any]) -> tuple[int, str]:
    return record["order"], record["part"]


def _section(record: dict[str, Any]) -> str:
    origin = f"`{record['command']}`, {record['date']}, {record['machine']}, {record['seconds'] / 60:.1f} minutes."
    findings = "".join(f"- {finding}\n" for finding in record["findings"])
    fixed = f"\nFound and fixed:\n\n{findings}" if findings else ""
    return (
        f"\n## {record['title']}\n\n{record['text']}\n\n{_table(record['columns'], record['rows'])}\n{origin}\n{fixed}"
    )


def _table(columns: list[str], rows: list[Any]) -> str:
    lines = ["| " + " | ".join(str(cell) for cell in row) + " |" for row in [columns, *rows]]
    lines.insert(1, "|" + "---|" * len(columns))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
