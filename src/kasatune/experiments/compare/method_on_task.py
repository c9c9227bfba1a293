"""One method on one task: its search trials first, then the reported runs with the chosen settings."""

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
from kasatune.experiments.compare.run_id import PlannedRun, plan_run
from kasatune.experiments.compare.run_store import FinishedRun
from kasatune.experiments.compare.spec import SEARCH_SEED, ComparisonSpec, Task, is_fitted
from kasatune.experiments.compare.variants import Variant
from kasatune.training.callback import LOWER_IS_BETTER

RunSteps = Generator[Sequence[PlannedRun], Sequence[FinishedRun], None]


@dataclass
class MethodOnTask:
    """One method on one task, with its finished runs.

    Attributes:
        spec: the comparison.
        task: the task.
        variant: the method and its settings.
        place: (index of the task, index of the method), which orders the runs.
        data: the rows of the task, including those that are reported on.
        search_data: the rows that the search sees.
        trials: (settings, run) of each search trial, in order.
        chosen: the settings that the search chose; {} without a search; None while unknown or if every trial failed.
        finals: (seed, run) of each reported run.
    """

    spec: ComparisonSpec
    task: Task
    variant: Variant
    place: tuple[int, int]
    data: TaskData
    search_data: TaskData
    trials: list[tuple[Settings, FinishedRun]] = field(default_factory=list)
    chosen: Settings | None = None
    finals: list[tuple[int, FinishedRun]] = field(default_factory=list)

    @property
    def title(self) -> str:
        """The method and the task, for messages."""
        return f"{self.variant.text} on {self.task.name}"

    @property
    def is_fitted(self) -> bool:
        """Whether the method is a baseline that is fitted in closed form rather than trained."""
        return is_fitted(self.variant.method)

    @property
    def space(self) -> dict[str, tuple[float, float]]:
        """(low, high) of each setting that is searched."""
        return search_space(self.variant, self.task.recipe, self.spec.search)

    @property
    def number_of_runs(self) -> int:
        """Number of trials and reported runs."""
        return (self.spec.search.trials if self.space else 0) + len(self.spec.seeds)

    def steps(self) -> RunSteps:
        """Yield the runs that can execute next, receive their results, and so on until every run is finished."""
        yield from self._search()
        if self.chosen is None:
            return
        runs = [self._plan(seed, self.chosen, search=False) for seed in self.spec.seeds]
        results = yield runs
        self.finals = list(zip(self.spec.seeds, results, strict=True))

    def take_finished(self, runs: Sequence[PlannedRun], results: Mapping[str, FinishedRun]) -> None:
        """Record those reported runs that are finished while others are not, for an interim report."""
        if self.chosen is not None:
            seeds = zip(self.spec.seeds, runs, strict=True)
            self.finals = [(seed, results[run.id]) for seed, run in seeds if run.id in results]

    def metrics_of(self, run: FinishedRun) -> dict[str, float] | None:
        """The scores of a run under the protocol; None if the run failed."""
        return run.metrics.get("metrics") if run.done else None

    def _search(self) -> RunSteps:
        if not self.space:
            self.chosen = {}
            return
        trials = fixed_trials(self.space, self.spec.search)
        if trials is not None:
            results = yield [self._plan(SEARCH_SEED, settings, search=True) for settings in trials]
            self.trials = list(zip(trials, results, strict=True))
        else:
            sampler = OptunaSearch(self.space, self.spec.search)
            for _ in range(self.spec.search.trials):
                settings = sampler.ask()
                (result,) = yield [self._plan(SEARCH_SEED, settings, search=True)]
                self.trials.append((settings, result))
                sampler.tell(self._value(result))
        scores = [self.metrics_of(run) for _, run in self.trials]
        best = best_trial(scores, self.data.primary, lower_is_better=self.data.primary in LOWER_IS_BETTER)
        self.chosen = None if best is None else self.trials[best][0]

    def _value(self, run: FinishedRun) -> float | None:
        value = (self.metrics_of(run) or {}).get(self.data.primary)
        return -value if value is not None and self.data.primary in LOWER_IS_BETTER else value

    def _plan(self, seed: int, settings: Settings, *, search: bool) -> PlannedRun:
        recipe = self.spec.recipe(self.task, self.variant, seed, settings)
        held_out = search and self.spec.protocol == "clean"
        data: Any = self.search_data if held_out else self.data
        return plan_run(recipe, data.sha256, search=held_out, cold=seed == self.spec.seeds[0])
