"""The form of published figures: plain data, nothing heavy is imported.

Figures stand as they were printed: percent for scores between 0 and 1, the metric's own scale for the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

AVERAGE = "average"
_OWN_SCALE = ("nist", "cider", "judge", "mt_bench", "loss", "perplexity")


@dataclass(frozen=True)
class Log:
    """What a log file of the authors says of one run.

    Attributes:
        best: the best epoch's score, which is the one that the paper reports.
        epoch: which one that was.
        last: the score of the last epoch.
        last_ten: mean over the last ten epochs.
        decimals: digits after the point.
    """

    best: float
    epoch: int | None = None
    last: float | None = None
    last_ten: float | None = None
    decimals: int = 2


@dataclass(frozen=True)
class Figure:
    """One number of a table.

    Attributes:
        task: name of the task, or `AVERAGE` over the tasks of the table.
        metric: name of the score.
        method: as `--methods` has it.
        paper: the number, or the smallest and the largest where a range was published; None where it is not known.
        source: where the number stands, or where it was looked for.
        minus: another method: the figure is the difference to it.
        log: the authors' log of the run; None where none was published.
        decimals: digits after the point of `paper`.
        caveats: why a run by the recipe is no repetition of what was published, one sentence each.
    """

    task: str
    metric: str
    method: str
    paper: float | tuple[float, float] | None
    source: str
    minus: str | None = None
    log: Log | None = None
    decimals: int = 1
    caveats: tuple[str, ...] = ()

    @property
    def target(self) -> tuple[float, float] | None:
        """Smallest and largest value that would be printed as published: the paper's number, else the log's."""
        if self.paper is None:
            return None if self.log is None else _rounded(self.log.best, self.log.decimals)
        return self.paper if isinstance(self.paper, tuple) else _rounded(self.paper, self.decimals)


@dataclass(frozen=True)
class PaperModel:
    """A base model of a table.

    Attributes:
        name: on the command line.
        title: in the field.
        recipes: the built-in recipe of each task.
        figures: what was published of it.
    """

    name: str
    title: str
    recipes: Mapping[str, str]
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class Judged:
    """How a judge graded the answers of a task's runs.

    Attributes:
        metric: the figures that hold its grades.
        protocol: "score", from 0 to 10 for each of the run's own rows, or "mt-bench", two turns from 1 to 10.
        model: the published judge, in the field's words.
    """

    metric: str
    protocol: str
    model: str


@dataclass(frozen=True)
class Experiment:
    """A table of the paper.

    Attributes:
        name: on the command line.
        title: what it shows.
        models: the base models, the one that is run by default first.
        methods: what is run by default.
        quick: overrides of the recipes that make the scaled-down form.
        quick_of_task: further ones for single tasks.
        quick_model: base model of the scaled-down form; None where the user has to name one.
        of_task: what sets the tasks of a shared recipe apart, in every form.
        files: the beginning of the name of each task's file in a folder of data; empty where the tasks know their
            files.
        scored: where a figure's task is a split of a run's data, the task of the run and the split; a task that is
            missing here is a run of its own, scored on its validation rows.
        settings: whose settings the recipes hold: "published", or "recipe" where they are a choice.
        judged: the tasks whose runs a judge grades.
        shown: methods whose published figures are shown even where they are not run.
        published: in words, how the published numbers came about.
        unknown: what could not be found out, one sentence each.
    """

    name: str
    title: str
    models: tuple[PaperModel, ...]
    methods: tuple[str, ...]
    quick: Mapping[str, str]
    published: str
    unknown: tuple[str, ...]
    quick_of_task: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    quick_model: str | None = None
    scored: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    of_task: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    settings: str = "published"
    judged: Mapping[str, Judged] = field(default_factory=dict)
    shown: tuple[str, ...] = ()

    def run_of(self, task: str) -> tuple[str, str | None]:
        """The task of the run that scores a figure's task, and the split; None for the run's own scores."""
        return self.scored.get(task, (task, None))


def scale(metric: str) -> float:
    """What a score of kasatune is multiplied by to stand beside a printed one."""
    return 1.0 if metric in _OWN_SCALE else 100.0


def _rounded(value: float, decimals: int) -> tuple[float, float]:
    half = 0.5 * 10**-decimals
    return value - half, value + half
