"""The HTML report of a comparison: one self-contained page without scripts or network access."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from kasatune.reports import formatting
from kasatune.reports.comparison.charts import (
    curve_chart,
    difference_chart,
    forgetting_chart,
    interval_chart,
    letters,
    rate_chart,
    trade_off_chart,
)
from kasatune.reports.comparison.comparison_tables import (
    NOTHING,
    cost_table,
    counts_sentence,
    endpoint_table,
    failures,
    overall_table,
    search_table,
    settings_sentence,
    task_table,
)
from kasatune.reports.comparison.conclusion import (
    analysis_sentence,
    begun,
    conclusion_sentences,
    listed,
    protocol_sentence,
    title_of,
)
from kasatune.reports.svg_charts import swatch
from kasatune.wording import counted

_STYLES = (Path(__file__).parents[1] / "page.css", Path(__file__).with_name("comparison.css"))


def render(comparison: Mapping[str, Any], *, running: bool = False) -> str:
    """The report as HTML; every value from the comparison is escaped.

    Args:
        comparison: the content of comparison.json.
        running: whether it is in progress; the page then reloads itself.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("kasatune.reports.comparison", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(sentence=formatting.sentence, metric=formatting.metric_title)
    environment.globals["swatch"] = swatch
    return environment.get_template("comparison.html").render(
        comparison=comparison,
        style=Markup("\n".join(path.read_text(encoding="utf-8") for path in _STYLES)),
        answer=conclusion_sentences(comparison),
        protocol=protocol_sentence(comparison),
        analysis=analysis_sentence(comparison),
        reference=title_of(comparison, comparison["reference"]),
        methods=len({entry["method"] for task in comparison["tasks"] for entry in task["results"]}),
        overall=overall_table(comparison) if comparison["overall"] and len(comparison["tasks"]) > 1 else None,
        tasks=[_task(comparison, task) for task in comparison["tasks"]],
        failures=failures(comparison),
        nothing=NOTHING,
        reload_seconds=formatting.RELOAD_SECONDS if running else None,
    )


def _task(comparison: Mapping[str, Any], task: Mapping[str, Any]) -> dict[str, Any]:
    reference = comparison["reference"]
    scored = task in begun(comparison)
    places = {entry["title"]: letters(task).get(entry["method"]) for entry in task["results"]}
    return {
        "name": task["name"],
        "begun": scored,
        "primary": task["primary"],
        "score": formatting.sentence(formatting.metric_title(task["primary"])),
        "counts": counts_sentence(task),
        "table": task_table(comparison, task),
        "places": places,
        "intervals": interval_chart(task, reference) if scored else None,
        "parameters": trade_off_chart(
            task, reference, lambda entry: entry["costs"].get("trained_parameters"), "trained parameters"
        ),
        "differences": difference_chart(task, reference, title_of(comparison, reference)) if scored else None,
        "forgetting": forgetting_chart(task, reference),
        "curves": curve_chart(task, reference),
        "rates": rate_chart(task, reference),
        "endpoints": endpoint_table(comparison, task),
        "texts": [
            {**sample, "texts": [(title_of(comparison, name), words) for name, words in sample["texts"].items()]}
            for sample in task.get("texts", ())
        ],
        "retention": _retention_text(task),
        "costs": cost_table(task),
        "search": search_table(task),
        "settings": settings_sentence(task),
        "notes": task["notes"],
        "edges": listed([e["title"] for e in task["results"] if e["search"] and e["search"]["at_the_edge"]]),
    }


def _retention_text(task: Mapping[str, Any]) -> str:
    """The text that forgetting was measured on; "" if nothing was measured."""
    for entry in task["results"]:
        retention = (entry["costs"] or {}).get("retention")
        if retention:
            if not retention.get("text"):
                return "Unrelated text: 48 plain sentences that came with kasatune."
            return f"Unrelated text: {counted(retention['tokens'], 'token')} of {retention['text']}."
    return ""
