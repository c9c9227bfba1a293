"""One JSON record for each part of the soak; docs/reliability.md is made of them."""

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
    """Write the record of one part; a quick form is not kept.

    Args:
        part: name of the record.
        title: of its section.
        order: of its section among the others.
        command: that made it.
        text: a paragraph of Markdown: what was done, and how it is judged.
        columns: heads of the table.
        rows: of the table.
        totals: numbers that are added up over all parts: "processes killed", "faults injected", "inputs tried",
            "processes used", "lost".
        findings: what was found and mended, a sentence each.
        seconds: that it took.
        quick: whether this was the quick form.
        folder: where records are.
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
