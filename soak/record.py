"""Write one JSON record for each part of the soak; docs/reliability.md is made from these."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

RECORDS = Path(__file__).resolve().parents[1] / "docs" / "results" / "reliability"


def write(
    *,
    part: str,
    title: str,
    order: int,
    command: str,
    text: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    totals: Mapping[str, int],
    findings: Sequence[str],
    seconds: float,
    quick: bool = False,
    folder: Path = RECORDS,
) -> Path | None:
    """Write the record of one part; a quick form writes none.

    Args:
        part: the name of the record.
        title: the title of its section.
        order: the position of its section on the page.
        command: the command that made it.
        text: a paragraph of Markdown: what was done and how it is judged.
        columns: the column headers of the table.
        rows: the rows of the table.
        totals: counts that are added up over all parts: "processes killed", "faults injected", "inputs tried",
            "processes used", "lost".
        findings: the defects found and fixed, one sentence each.
        seconds: the duration.
        quick: whether this was the quick form.
        folder: the directory of the records.
    """
    if quick:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "part": part,
        "title": title,
        "order": order,
        "command": command,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
        "seconds": round(seconds, 1),
        "text": text,
        "columns": list(columns),
        "rows": [list(row) for row in rows],
        "totals": dict(totals),
        "findings": list(findings),
    }
    path = folder / f"{part}.json"
    path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path
