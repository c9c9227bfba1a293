"""comparison.json: the only place that reads and writes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kasatune.errors import InputError
from kasatune.experiments.compare.comparison_model import SCHEMA_VERSION, Comparison
from kasatune.io.atomic import finite, write_json
from kasatune.recipes.messages import message
from kasatune.reports.comparison.conclusion import conclusion
from kasatune.reports.comparison.write_reports import write_reports

COMPARISON = "comparison.json"
_REPAIR = "repeat the command that made it with --report-only"


def checked(content: Mapping[str, Any]) -> dict[str, Any]:
    """Validate the content of a new comparison.json; NaN and infinity become None.

    Raises:
        pydantic.ValidationError: it does not follow the model.
    """
    return Comparison.model_validate({**finite(content), "schema_version": SCHEMA_VERSION}).model_dump(mode="json")


def write_comparison(content: Mapping[str, Any], out: Path, *, running: bool = False) -> dict[str, Any]:
    """Write comparison.json and the reports made from it into `out`.

    Args:
        content: of comparison.json.
        out: directory of the comparison.
        running: whether it is in progress; report.html then reloads itself.

    Returns:
        `content` with the conclusion under "answer".

    Raises:
        OutputError: `out` cannot be written.
    """
    complete = {**content, "answer": conclusion(content)}
    write_json(out / COMPARISON, complete, indent=1)
    write_reports(complete, out, running=running)
    return complete


def read_comparison(out: Path) -> dict[str, Any]:
    """Read comparison.json; keys that an earlier version did not write have their defaults.

    Raises:
        InputError: it is missing or damaged, or a later version of kasatune wrote it.
    """
    path = out / COMPARISON
    try:
        content = Comparison.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as fault:
        first = fault.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(f"{path} is damaged at {place} ({message(first)}); {_REPAIR}") from fault
    except (OSError, ValueError) as fault:
        raise InputError(f"{path} cannot be read ({fault}); {_REPAIR}") from fault
    if content.schema_version > SCHEMA_VERSION:
        raise InputError(
            f"{path} has schema version {content.schema_version}, this version reads up to {SCHEMA_VERSION}; "
            "update kasatune"
        )
    return content.model_dump(mode="json")
