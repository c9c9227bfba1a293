"""The HTML report of a run: one self-contained page without scripts or network access."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from kasatune import wording
from kasatune.data.tasks.mixture_parts import in_turn
from kasatune.io.atomic import write_text
from kasatune.io.run_layout import REPORT
from kasatune.reports import classification_errors as errors
from kasatune.reports import formatting
from kasatune.reports import layer_spectra as spectra
from kasatune.reports.routing_charts import routing_by_part, routing_charts, routing_table
from kasatune.reports.run_record import RunRecord, read_run
from kasatune.reports.score_intervals import accuracy_interval, against_baseline
from kasatune.reports.svg_charts import swatch
from kasatune.reports.text_rows import cut_facts, cut_sentence, position_chart
from kasatune.reports.training_curves import (
    gradient_chart,
    loss_chart,
    penalty_chart,
    rate_chart,
    score_chart,
    tokens_per_second,
)

SHOWN_TEXTS = 8


def write_report(run_dir: Path) -> None:
    """Write RUN_DIR/report.html from its recipe.yaml, metrics.json, history.jsonl and spectrum.json.

    Raises:
        InputError: the directory is not a finished run, or one of these files cannot be read.
    """
    run = read_run(run_dir)
    write_text(run.run_dir / REPORT, render(run))


def write_live_report(run_dir: Path, *, running: bool) -> None:
    """Write RUN_DIR/report.html of a run that is not finished.

    Args:
        run_dir: its directory, with recipe.yaml and history.jsonl.
        running: whether it is in progress; the page then reloads itself every `formatting.RELOAD_SECONDS` seconds.

    Raises:
        InputError: one of these files cannot be read.
    """
    run = read_run(run_dir, finished=False)
    write_text(run.run_dir / REPORT, render(run, reload_seconds=formatting.RELOAD_SECONDS if running else None))


def render(run: RunRecord, *, reload_seconds: int | None = None) -> str:
    """The report as HTML; every value from the run is escaped.

    Args:
        run: the run.
        reload_seconds: how often the page reloads itself; None for never.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("kasatune.reports", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        score=formatting.score,
        signed=formatting.signed,
        count=formatting.count,
        duration=formatting.duration,
        size=formatting.size,
        epoch=wording.epoch,
        share=formatting.share,
        metric=partial(formatting.metric_title, run=run.metrics),
        sentence=formatting.sentence,
        breakable=breakable,
    )
    environment.globals["swatch"] = swatch
    style = "\n".join(Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("page.css", "run.css"))
    all_layers = spectra.layers(run)
    return environment.get_template("page.html").render(
        run=run,
        style=Markup(style),
        result=result_sentence(run),
        cut=cut_sentence(run),
        seed=run.recipe.get("training", {}).get("seed"),
        interval=accuracy_interval(run),
        against=against_baseline(run),
        rows=score_rows(run),
        parts=part_rows(run),
        charts=[*(chart for chart in (draw(run) for draw in _CHARTS) if chart), *routing_charts(run)],
        routers=routing_table(run),
        routed_parts=routing_by_part(run),
        epochs=_epoch_table(run),
        layers=all_layers,
        orders=layer_orders(all_layers),
        confusion=errors.confusion(run),
        classes=errors.class_scores(run),
        worst=errors.worst_rows(run),
        constant=errors.constant_answer(run),
        reload_seconds=reload_seconds,
        facts=facts(run),
        origin=origin(run),
        texts=generated_texts(run)[:SHOWN_TEXTS],
        base_texts=run.predictions.get("base_predictions") or [],
        decoding=decoding(run),
    )


def result_sentence(run: RunRecord) -> str:
    """The main score, and whether it differs significantly from the fitted head's; "" for a run without scores."""
    if run.primary is None:
        return _progress_sentence(run)
    value = formatting.score(run.scores[run.primary])
    result = f"{run.method_title}: {formatting.metric_title(run.primary)} {value} on {run.split}"
    against = against_baseline(run)
    if against is None or against.low == against.high:
        compared = _compared_with_untrained(run)
        return f"{result}; {compared}." if compared else f"{result}."
    if against.low > 0:
        verdict = "significantly better than"
    else:
        verdict = "significantly worse than" if against.high < 0 else "not significantly different from"
    return f"{result}, {verdict} a head fitted on the frozen model."


_CHARTS = (loss_chart, score_chart, position_chart, rate_chart, gradient_chart, penalty_chart, spectra.sigma_summary)


def layer_orders(layers: list[spectra.Layer]) -> dict[str, list[int]]:
    """The position of each layer when they are sorted, largest first, by the share of energy dropped and by sigma."""
    keys = {
        "energy": [layer.energy for layer in layers],
        "sigma": [layer.sigma_end for layer in layers],
        "change": [abs(layer.sigma_end - (layer.sigma_start or 0.0)) for layer in layers],
    }
    orders = {}
    for name, values in keys.items():
        ranked = sorted(range(len(layers)), key=lambda index: -values[index])
        orders[name] = [position for position, _ in sorted(enumerate(ranked), key=lambda pair: pair[1])]
    return orders


def breakable(name: str) -> Markup:
    """A dotted name that may break after each dot."""
    return Markup(".<wbr>").join(name.split("."))


def _compared_with_untrained(run: RunRecord) -> str:
    """The main score without training: of the best constant answer, or the loss of the untouched base."""
    constant = errors.constant_answer(run)
    if constant is not None:
        return f"{constant[0]} gives {formatting.score(constant[1])}"
    start = run.metrics.get("start") or {}
    base, loss = start.get("base"), run.scores.get("loss")
    if base is None or loss is None:
        return ""
    rows = wording.counted(start.get("rows", 0), "row")
    return f"loss {formatting.score(loss)} (untouched base: {formatting.score(base['loss'])} on the first {rows})"


def _progress_sentence(run: RunRecord) -> str:
    """How far a run without scores has come; "" if it has no step."""
    steps = run.events("train")
    if not steps:
        return ""
    last = steps[-1]
    total = f" of {last['total_steps']:,}" if last.get("total_steps") else ""
    return f"Step {last['step']:,}{total}: training loss {formatting.score(last.get('loss'))}."


def score_rows(run: RunRecord) -> list[tuple[str, float, float | None]]:
    """(name, value of the selected state, value of the last state) of every score; the primary score first."""
    last = (run.metrics.get("last") or {}).get("metrics") or {}
    return [(name, run.scores[name], last.get(name)) for name in run.score_names]


def generated_texts(run: RunRecord) -> list[tuple[str, str, list[str]]]:
    """(prompt, generated text, references) of each scored row, of a mixture from each part in turn; otherwise empty."""
    predictions = run.predictions
    if not predictions.get("inputs"):
        return []
    texts = list(zip(predictions["inputs"], predictions["predictions"], predictions["labels"], strict=True))
    return [texts[index] for index in in_turn(predictions.get("parts") or [""] * len(texts))]


def part_rows(run: RunRecord) -> list[tuple[str, str, str, str, str]]:
    """(part, task, weight, training rows, validation rows) of each part of a mixture, formatted; empty for others."""
    return [
        (
            name,
            str(part["task"]),
            f"{part['weight']:g}",
            f"{formatting.count(part['drawn'])} an epoch, from {formatting.count(part['train_rows'])}",
            formatting.count(part["validation_rows"]),
        )
        for name, part in (run.metrics.get("parts") or {}).items()
    ]


def decoding(run: RunRecord) -> str:
    """The decoding settings as text; "" for tasks without text generation."""
    settings = run.metrics.get("generation") or {}
    parts = settings.get("parts") or {}
    unused = settings.get("model_settings_not_used") or {}
    own = next(iter(parts.values()), {})  # the settings that each part has for itself
    shown = {name: value for name, value in settings.items() if name not in ("model_settings_not_used", "parts", *own)}
    by_part = [f"{part}: {_in_words(values)}" for part, values in parts.items()]
    not_used = [f"settings of the model that are not used: {_in_words(unused)}"] if unused else []
    return "; ".join(text for text in (*by_part, _in_words(shown), *not_used) if text)


def _in_words(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items())


def facts(run: RunRecord) -> list[tuple[str, str]]:
    """(name, value) of every cost of the run, formatted."""
    metrics = run.metrics
    trainable, head = metrics.get("trainable_parameters"), metrics.get("head_parameters")
    lines = [("trainable parameters", formatting.count(trainable))]
    if head is not None:
        lines.append(("parameters of the new head", formatting.count(head)))
    losses = {**(metrics.get("start") or {}), "end": metrics.get("end")}
    states = (("base", "of the untouched base"), ("start", "before the first step"), ("end", "after training"))
    for key, what in (("loss", "loss"), ("unrelated_loss", "loss on unrelated text")):
        for state, named in states:
            if losses.get(state) is not None:
                lines.append((f"{what} {named}", formatting.score(losses[state][key])))
    lines += cut_facts(run)
    lines += [
        (f"time, {name.replace('_', ' ')}", formatting.duration(value))
        for name, value in (metrics.get("seconds") or {}).items()
    ]
    speed = tokens_per_second(run)
    if speed is not None:
        lines.append(("tokens per second, training", f"{speed:,.0f}"))
    lines.append(("peak memory", formatting.size(metrics.get("peak_memory_bytes"))))
    return lines


def origin(run: RunRecord) -> list[tuple[str, str]]:
    """(name, value) of the run's provenance, formatted; only what metrics.json records."""
    metrics = run.metrics
    model, machine = metrics.get("model") or {}, metrics.get("machine") or {}
    lines = [
        ("recipe, SHA-256", metrics.get("recipe_sha256")),
        ("seed", metrics.get("seed")),
        ("base model, commit", model.get("revision")),
        ("base model, fingerprint", model.get("fingerprint")),
        ("system", machine.get("system")),
        ("processor", machine.get("processor")),
        ("accelerator", machine.get("accelerator")),
        ("threads", machine.get("threads")),
        ("processes", machine.get("processes")),
    ]
    return [(name, str(value)) for name, value in lines if value is not None]


def _epoch_table(run: RunRecord) -> dict[str, Any] | None:
    """The scores of every evaluation, one row each; None without evaluations."""
    events = run.events("evaluate")
    if not events:
        return None
    names = list(dict.fromkeys(name for event in events for name in event["metrics"]))
    selected = run.metrics.get("selected") or {}
    rows = [
        {
            "epoch": event["epoch"],
            "step": event["step"],
            "split": event.get("split"),
            "values": [event["metrics"].get(name) for name in names],
            "selected": event["step"] == selected.get("step"),
        }
        for event in events
    ]
    return {"names": names, "rows": rows}
