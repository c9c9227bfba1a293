"""report.html of a comparison: one self-contained page, readable without scripts, a network or kasatune."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from kasatune.reports import formatting as words
from kasatune.reports.comparison.charts import curve_chart, interval_chart, letters, trade_off_chart
from kasatune.reports.comparison.comparison_tables import (
    NOTHING,
    cost_table,
    counts_sentence,
    failures,
    overall_table,
    search_table,
    settings_sentence,
    task_table,
)
from kasatune.reports.comparison.conclusion import begun, conclusion, protocol_sentence, title_of
from kasatune.reports.svg_charts import swatch

_STYLES = (Path(__file__).parents[1] / "page.css", Path(__file__).with_name("comparison.css"))


def render(found: Mapping[str, Any]) -> str:
    """The page as HTML; everything that comes from the comparison is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("kasatune.reports.comparison", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(sentence=words.sentence, metric=words.metric_title)
    environment.globals["swatch"] = swatch
    return environment.get_template("comparison.html").render(
        found=found,
        style=Markup("\n".join(path.read_text(encoding="utf-8") for path in _STYLES)),
        answer=found.get("answer") or conclusion(found),
        protocol=protocol_sentence(found),
        reference=title_of(found, found["reference"]),
        overall=overall_table(found) if found["overall"] and len(found["tasks"]) > 1 else None,
        tasks=[_task(found, task) for task in found["tasks"]],
        failures=failures(found),
        nothing=NOTHING,
    )


def _task(found: Mapping[str, Any], task: Mapping[str, Any]) -> dict[str, Any]:
    reference = found["reference"]
    scored = task in begun(found)
    places = {entry["title"]: letters(task).get(entry["method"]) for entry in task["results"]}
    return {
        "name": task["name"],
        "begun": scored,
        "primary": task["primary"],
        "counts": counts_sentence(task),
        "table": task_table(found, task),
        "places": places,
        "intervals": interval_chart(task, reference) if scored else None,
        "parameters": trade_off_chart(
            task, reference, lambda entry: entry["costs"].get("trained_parameters"), "trained parameters"
        ),
        "time": trade_off_chart(
            task, reference, lambda entry: entry["costs"].get("seconds_per_step"), "seconds per optimizer step"
        ),
        "curves": curve_chart(task, reference),
        "costs": cost_table(task),
        "search": search_table(task),
        "settings": settings_sentence(task),
        "notes": task["notes"],
        "edges": [e["title"] for e in task["results"] if e["search"] and e["search"]["at_the_edge"]],
    }
