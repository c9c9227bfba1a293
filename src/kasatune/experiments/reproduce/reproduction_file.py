"""reproduction.json: its typed model with a schema version, and the only place that reads and writes it.

Keys are added, never renamed or removed. Files of earlier versions are read with the defaults of the keys they lack.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kasatune.errors import InputError
from kasatune.io.atomic import finite, write_json, write_text
from kasatune.recipes.messages import message
from kasatune.reports.reproduction import markdown

REPRODUCTION, PAGE = "reproduction.json", "reproduction.md"
SCHEMA_VERSION = 2  # 1: files without the key

Number = int | float
VerdictWord = Literal["reproduced", "lower", "higher", "undecided", "not comparable", "nothing published", "not run"]


class _Model(BaseModel):
    """Keys that a later version adds are kept."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())


class LogScores(_Model):
    """Scores in the authors' log of a run.

    Attributes:
        best: score of the best epoch.
        epoch: the best epoch.
        last: score of the last epoch.
        last_ten: mean of the last ten epochs.
    """

    best: Number
    epoch: int | None
    last: Number | None
    last_ten: Number | None


class OurScores(_Model):
    """Our score for a figure, on the scale of the paper.

    Attributes:
        score: mean over the seeds.
        interval: [low, high], 95 %; None if there is none.
        seeds: the score of each seed.
        epochs: the scored epoch of each seed.
        last: score of the last epoch, mean over the seeds.
        last_ten: mean of the last ten epochs and the seeds; None for shorter runs.
        runs: the run directories.
    """

    score: Number | None
    interval: list[Number] | None
    seeds: list[Number | None]
    epochs: list[Number | None]
    last: Number | None
    last_ten: Number | None
    runs: list[str]


class FigureEntry(_Model):
    """One number of the table.

    Attributes:
        task: name of the task, or "average" over the tasks of the table.
        metric: name of the score.
        method: the method as written on the command line.
        minus: another method, if the figure is the difference to it.
        paper: the published number, or [smallest, largest]; None if it is unknown.
        decimals: decimals of `paper` in print.
        source: where the number was published, or where it was searched for.
        log: the authors' log; None if none was published.
        ours: our score; None if there is none.
        verdict: a word of `rule`.
        reasons: reasons for the verdict.
    """

    task: str
    metric: str
    method: str
    minus: str | None
    paper: Number | list[Number] | None
    decimals: int
    source: str
    log: LogScores | None
    ours: OurScores | None
    verdict: VerdictWord
    reasons: list[str]


class Reproduction(_Model):
    """The content of reproduction.json.

    Attributes:
        schema_version: version of this model.
        format: always 1; kept for readers of earlier files.
        date: ISO date of the table; "" in files written without it.
        experiment: name of the table on the command line.
        title: title of the table.
        command: the command line that repeats it; "" from Python.
        quick: whether it is the scaled-down form.
        model: the base model of the table whose published numbers are used.
        model_title: its title.
        base: the base models of the runs.
        seeds: seeds of the runs.
        methods: methods as written on the command line.
        published: how the published numbers were obtained.
        unknown: what could not be found out about them.
        rule: the rule of the verdicts.
        settings: "published" if the recipes contain the published settings, "recipe" if these are a choice.
        differences: settings of our runs that differ from the recipes.
        judged: which answers were graded, by which judge, at what cost.
        figures: one entry per number of the table.
        failed: whether a run failed.
        machine: the processor.
        versions: software versions.
    """

    schema_version: int = 1
    format: int = 1
    date: str = ""
    experiment: str
    title: str
    command: str
    quick: bool
    model: str
    model_title: str
    base: list[str]
    seeds: list[int]
    methods: list[str]
    published: str
    unknown: list[str]
    rule: str
    settings: Literal["published", "recipe"]
    differences: list[str]
    judged: list[str] = Field(default_factory=list)
    figures: list[FigureEntry]
    failed: bool
    machine: dict[str, Any]
    versions: dict[str, Any]


def checked(content: Mapping[str, Any]) -> dict[str, Any]:
    """Validate the content of a new reproduction.json; NaN and infinity become None.

    Raises:
        pydantic.ValidationError: it does not follow the model.
    """
    return Reproduction.model_validate({**finite(content), "schema_version": SCHEMA_VERSION}).model_dump(mode="json")


def write_reproduction(content: Mapping[str, Any], out: Path) -> None:
    """Write reproduction.json and the page made from it, reproduction.md, into `out`.

    Raises:
        OutputError: `out` cannot be written.
    """
    write_json(out / REPRODUCTION, content)
    write_text(out / PAGE, markdown(content))


def read_reproduction(out: Path) -> dict[str, Any]:
    """Read reproduction.json; keys that an earlier version did not write have their defaults.

    Raises:
        InputError: it is missing or damaged, or a later version of kasatune wrote it.
    """
    path = out / REPRODUCTION
    try:
        content = Reproduction.model_validate(json.loads(path.read_text(encoding="utf-8")))
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


_REPAIR = "repeat the command that made it"
