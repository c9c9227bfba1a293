"""A method on a task: first the trials of its search, then the runs that are reported."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kasatune.data.tasks.dataset import TaskData
from kasatune.experiments.compare.hyperparameter_search import (
    OptunaSearch,
    Settings,
    best_trial,
    fixed_trials,
    search_space,
)
from kasatune.experiments.compare.run_id import Job, make_job
from kasatune.experiments.compare.run_store import Finished
from kasatune.experiments.compare.spec import SEARCH_SEED, Request, Task, is_fitted
from kasatune.experiments.compare.variants import Variant
from kasatune.training.callback import LOWER_IS_BETTER

Steps = Generator[Sequence[Job], Sequence[Finished], None]


@dataclass
class Cell:
    """One method on one task, and how far it has come.

    Attributes:
        request: the comparison.
        task: what is learnt.
        variant: how.
        place: (number of the task, number of the method), for the order of the work.
        data: the rows of the task, the reported ones included.
        search_data: the rows that a search sees.
        tried: settings of each trial with its run, in the order of the trials.
        chosen: what the search found; {} where there is none; None while it is unknown, or where every trial failed.
        finals: each seed with its run.
    """

    request: Request
    task: Task
    variant: Variant
    place: tuple[int, int]
    data: TaskData
    search_data: TaskData
    tried: list[tuple[Settings, Finished]] = field(default_factory=list)
    chosen: Settings | None = None
    finals: list[tuple[int, Finished]] = field(default_factory=list)

    @property
    def title(self) -> str:
        """The method and the task in a few words."""
        return f"{self.variant.text} on {self.task.name}"

    @property
    def space(self) -> dict[str, tuple[float, float]]:
        """What is searched, within which bounds."""
        return search_space(self.variant, self.task.recipe, self.request.search)

    @property
    def number_of_runs(self) -> int:
        """Trials and reported runs."""
        return (self.request.search.trials if self.space else 0) + len(self.request.seeds)

    def steps(self) -> Steps:
        """The runs to do, some at a time; takes what came of them and gives the next."""
        yield from self._search()
        if self.chosen is None:
            return
        jobs = [self._job(seed, self.chosen, search=False) for seed in self.request.seeds]
        results = yield jobs
        self.finals = list(zip(self.request.seeds, results, strict=True))

    def take(self, jobs: Sequence[Job], results: Mapping[str, Finished]) -> None:
        """Enter the reported runs that are there while others of `jobs` are not, for a report on the way."""
        if self.chosen is not None:
            there = zip(self.request.seeds, jobs, strict=True)
            self.finals = [(seed, results[job.id]) for seed, job in there if job.id in results]

    def score_of(self, run: Finished) -> dict[str, float] | None:
        """The scores that count under the protocol; None for a run that failed."""
        return run.metrics.get("metrics") if run.done else None

    def _search(self) -> Steps:
        if not self.space:
            self.chosen = {}
            return
        settings = fixed_trials(self.space, self.request.search)
        if settings is not None:
            results = yield [self._job(SEARCH_SEED, one, search=True) for one in settings]
            self.tried = list(zip(settings, results, strict=True))
        else:
            sampler = OptunaSearch(self.space, self.request.search)
            for _ in range(self.request.search.trials):
                one = sampler.ask()
                (result,) = yield [self._job(SEARCH_SEED, one, search=True)]
                self.tried.append((one, result))
                sampler.tell(self._value(result))
        scores = [self.score_of(run) for _, run in self.tried]
        best = best_trial(scores, self.data.primary, lower_is_better=self.data.primary in LOWER_IS_BETTER)
        self.chosen = None if best is None else self.tried[best][0]

    def _value(self, run: Finished) -> float | None:
        value = (self.score_of(run) or {}).get(self.data.primary)
        return -value if value is not None and self.data.primary in LOWER_IS_BETTER else value

    def _job(self, seed: int, settings: Settings, *, search: bool) -> Job:
        recipe = self.request.recipe(self.task, self.variant, seed, settings)
        held_out = search and self.request.protocol == "clean"
        data: Any = self.search_data if held_out else self.data
        return make_job(recipe, data.sha256, search=held_out, cold=seed == self.request.seeds[0])


def fitted(cell: Cell) -> bool:
    """Whether the method of a cell is a baseline that is fitted in one go."""
    return is_fitted(cell.variant.method)
