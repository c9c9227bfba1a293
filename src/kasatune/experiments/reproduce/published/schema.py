"""The data classes of published figures; imports nothing heavy.

Figures are stored as printed: in percent for scores between 0 and 1, on the metric's scale for the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

AVERAGE = "average"
_OWN_SCALE = ("nist", "cider", "judge", "mt_bench", "loss", "perplexity")


@dataclass(frozen=True)
class Log:
    """Scores of one run, from a log file of the authors.

    Attributes:
        best: score of the best epoch, which is the one that the paper reports.
        epoch: the best epoch.
        last: score of the last epoch.
        last_ten: mean score of the last ten epochs.
        decimals: digits after the decimal point.
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
        method: the method, as in `--methods`.
        paper: the number, or the limits of a published range; None if it is not known.
        source: where the number is printed, or where it was looked for.
        minus: a method; the figure is then the difference to it.
        log: the authors' log of the run; None if none was published.
        decimals: digits of `paper` after the decimal point.
        caveats: why a run of the recipe does not repeat the published one, one sentence each.
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
        """Smallest and largest value that round to the published number: the paper's, else the log's."""
        if self.paper is None:
            return None if self.log is None else _rounded(self.log.best, self.log.decimals)
        return self.paper if isinstance(self.paper, tuple) else _rounded(self.paper, self.decimals)


@dataclass(frozen=True)
class PaperModel:
    """A base model of a table.

    Attributes:
        name: name on the command line.
        title: usual name in publications.
        recipes: the built-in recipe of each task.
        figures: its published figures.
    """

    name: str
    title: str
    recipes: Mapping[str, str]
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class Judged:
    """How a judge graded the answers of a task's runs.

    Attributes:
        metric: metric of the figures with its grades.
        protocol: "score", from 0 to 10 for each of the run's own rows, or "mt-bench", two turns from 1 to 10.
        model: the judge in the paper.
    """

    metric: str
    protocol: str
    model: str


@dataclass(frozen=True)
class Experiment:
    """A table of the paper.

    Attributes:
        name: name on the command line.
        title: title of the table.
        models: the base models; the first is the default.
        methods: the methods that are run by default.
        quick: recipe overrides of the scaled-down form.
        quick_of_task: further ones for single tasks.
        quick_model: base model of the scaled-down form; None if the user must name one.
        of_task: recipe overrides by task, in both forms, for tasks that share a recipe.
        files: the start of the file name of each task in a data folder; empty for tasks with fixed file names.
        scored: for a figure on another split of a run's data, the task of the run and the split, by the figure's task;
            a task that is not listed has a separate run, scored on its validation rows.
        settings: origin of the recipes' settings: "published", or "recipe" if they are kasatune's choice.
        judged: the tasks whose runs are graded by a judge.
        shown: methods whose published figures are shown even if they are not run.
        published: how the published numbers were obtained.
        unknown: what is unknown about the published runs, one sentence each.
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
        """The task of the run behind a figure's task, and the split; None for the scores in metrics.json."""
        return self.scored.get(task, (task, None))


def scale(metric: str) -> float:
    """The factor between a score of kasatune and a printed one."""
    return 1.0 if metric in _OWN_SCALE else 100.0


def _rounded(value: float, decimals: int) -> tuple[float, float]:
    half = 0.5 * 10**-decimals
    return value - half, value + half
