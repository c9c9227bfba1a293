"""Model cards: README.md of a run directory and of its adapter."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path
from typing import Any

import jinja2
import yaml

from kasatune.io.atomic import write_text
from kasatune.io.run_layout import ADAPTER, CARD, CHECKPOINT, NATIVE, RECIPE
from kasatune.reports import formatting, markdown
from kasatune.reports.loading_snippet import example_texts, loading_snippet
from kasatune.reports.run_page import decoding, facts, part_rows
from kasatune.reports.run_record import RunRecord, read_run
from kasatune.reports.score_intervals import accuracy_interval, against_baseline
from kasatune.reports.score_tables import as_markdown, scores


def write_card(run_dir: Path) -> None:
    """Write RUN_DIR/README.md, and RUN_DIR/adapter/README.md if there is an adapter/.

    Raises:
        InputError: the directory is not a finished run, or one of its files cannot be read.
    """
    run = read_run(run_dir)
    write_text(run.run_dir / CARD, run_card(run))
    if (run.run_dir / ADAPTER).is_dir():
        write_text(run.run_dir / ADAPTER / CARD, adapter_card(run))


def run_card(run: RunRecord) -> str:
    """The model card of the run directory."""
    return _template("card.md").render(
        run=run,
        front_matter=_front_matter(run),
        scores=as_markdown(scores(run.metrics)),
        parts=_parts(run),
        facts=markdown.table(["cost", "value"], [[markdown.text(n), markdown.text(v)] for n, v in facts(run)], 1),
        versions=_versions(run),
        interval=accuracy_interval(run),
        decoding=decoding(run),
        against=against_baseline(run),
        predict=_predict_command(run),
        again=f"kasatune train {shlex.quote(str(run.output / RECIPE))} --out {shlex.quote(f'{run.output}-again')}",
        has_adapter=(run.run_dir / ADAPTER).is_dir(),
        has_native=(run.run_dir / NATIVE).is_dir(),
        has_checkpoint=(run.run_dir / CHECKPOINT).is_dir(),
    )


def adapter_card(run: RunRecord, *, with_run: bool = True) -> str:
    """The model card of the adapter, with code that loads it without kasatune.

    Args:
        run: the run.
        with_run: whether the card is inside the run directory, to whose README.md it then refers.
    """
    return _template("adapter_card.md").render(
        run=run,
        front_matter=_front_matter(run),
        scores=as_markdown(scores(run.metrics)),
        snippet=markdown.block(loading_snippet(run), "python"),
        parity=_parity(run),
        quantization=run.recipe.get("model", {}).get("quantization", "none"),
        with_run=with_run,
    )


def _template(name: str) -> jinja2.Template:
    # The output is Markdown, so HTML escaping is off: every value passes through `text` or `code`, which escape it.
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("kasatune.reports", ""),
        autoescape=False,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        text=markdown.text, code=markdown.code, block=markdown.block, sentence=formatting.sentence
    )
    return environment.get_template(name)


def _front_matter(run: RunRecord) -> str:
    """The YAML metadata for the model hub; without a licence, which is not known here."""
    adapter = (run.run_dir / ADAPTER).is_dir()
    tags = ["kasatune", run.method_name, *(["lora"] if run.adapter_note else [])]
    results = [
        {"type": name, "name": formatting.metric_title(name, run.metrics), "value": round(float(value), 6)}
        for name, value in run.scores.items()
        if value is not None and math.isfinite(value)
    ]
    matter: dict[str, Any] = {
        "base_model": run.model_name,
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": _pipeline(run),
        "tags": list(dict.fromkeys(tags)),
        "model-index": [
            {
                "name": f"{run.method_title} on {run.task_name}",
                "results": [
                    {
                        "task": {"type": _pipeline(run), "name": run.task_title},
                        "dataset": {
                            "type": run.task_name,
                            "name": run.task_name,
                            "split": run.split,
                        },
                        "metrics": results,
                    }
                ],
            }
        ],
    }
    return yaml.safe_dump(matter, sort_keys=False, allow_unicode=True).rstrip()


def _pipeline(run: RunRecord) -> str:
    return "text-generation" if run.task_kind == "generation" else "text-classification"


def _predict_command(run: RunRecord) -> str:
    text = r"\t".join(example_texts(run))  # a pair is one argument, with a tab between its texts
    quoted = f"$'{text}'" if "\\t" in text else f"'{text}'"
    return f"kasatune predict {shlex.quote(str(run.output))} --text {quoted}"


def _parts(run: RunRecord) -> str:
    """The parts of a mixture as a table; "" for other tasks."""
    head = ["part", "task", "weight", "training rows", "validation rows"]
    rows = [[markdown.text(cell) for cell in row] for row in part_rows(run)]
    return markdown.table(head, rows, numbers=3) if rows else ""


def _parity(run: RunRecord) -> float | None:
    """The largest relative difference of an update, from certificate.json; None if it was not measured."""
    path = run.run_dir / ADAPTER / "certificate.json"
    try:
        return float(json.loads(path.read_text(encoding="utf-8"))["updates"]["largest_relative_difference"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _versions(run: RunRecord) -> str:
    versions = run.metrics.get("versions") or {}
    return ", ".join(f"{markdown.text(name)} {markdown.text(version)}" for name, version in versions.items())
