"""One method on one task: its search trials first, then the reported runs with the chosen settings."""

from __future__ import annotations

import statistics
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kasatune.data.tasks.dataset import TaskData
from kasatune.experiments.compare.hyperparameter_search import (
    OptunaSearch,
    Settings,
    best_trial,
    beyond_the_edge,
    fixed_trials,
    search_space,
)
from kasatune.experiments.compare.run_id import PlannedRun, plan_run
from kasatune.experiments.compare.run_store import FinishedRun
from kasatune.experiments.compare.spec import ComparisonSpec, Task, is_fitted
from kasatune.experiments.compare.variants import Variant
from kasatune.training.better_score import LOWER_IS_BETTER

RunSteps = Generator[Sequence[PlannedRun], Sequence[FinishedRun], None]


@dataclass(frozen=True)
class TrialRuns:
    """A search trial.

    Attributes:
        settings: the settings that are tried.
        runs: (seed, run) for every seed of the search.
    """

    settings: Settings
    runs: list[tuple[int, FinishedRun]]

    def means(self, primary: str) -> dict[str, float] | None:
        """The mean main score and loss over the seeds; None if a run failed, since others may fail like it."""
        if not all(run.done for _, run in self.runs):
            return None
        scores = [run.metrics["metrics"] for _, run in self.runs]
        columns = {name: [score.get(name) for score in scores] for name in (primary, "loss")}
        return {name: statistics.fmean(values) for name, values in columns.items() if None not in values}


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
        trials: the search trials, in order.
        chosen: the settings that the search chose; {} without a search; None while unknown or if every trial failed.
        finals: (seed, run) of each reported run.
        planned_trials: settings of the trials that are finished or planned.
        searched: whether the search has ended.
    """

    spec: ComparisonSpec
    task: Task
    variant: Variant
    place: tuple[int, int]
    data: TaskData
    search_data: TaskData
    trials: list[TrialRuns] = field(default_factory=list)
    chosen: Settings | None = None
    finals: list[tuple[int, FinishedRun]] = field(default_factory=list)
    planned_trials: int = 0
    searched: bool = False

    @property
    def title(self) -> str:
        """The method and the task, for messages."""
        return f"{self.variant.text} on {self.task.name}"

    @property
    def label(self) -> str:
        """The method, for tables."""
        return self.variant.text

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
        """Number of runs of the trials and reported runs, as far as they are known."""
        trials = max(self.spec.search.trials, self.planned_trials) if self.space else 0
        reported = 0 if self.searched and self.chosen is None else len(self.spec.seeds)
        return trials * self.spec.search.seeds + reported

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

    def _search(self) -> RunSteps:
        if not self.space:
            self.chosen, self.searched = {}, True
            return
        settings = fixed_trials(self.space, self.spec.search)
        if settings is not None:
            yield from self._try(settings)
            for _ in range(self.spec.search.extensions):
                best = self._best()
                further = None if best is None else beyond_the_edge(best, [trial.settings for trial in self.trials])
                if further is None:
                    break
                yield from self._try([further])
        else:
            sampler = OptunaSearch(self.space, self.spec.search)
            for _ in range(self.spec.search.trials):
                yield from self._try([sampler.ask()])
                value = (self.trials[-1].means(self.data.primary) or {}).get(self.data.primary)
                sampler.tell(-value if value is not None and self._lower_is_better else value)
        self.chosen, self.searched = self._best(), True

    def _try(self, settings: Sequence[Settings]) -> RunSteps:
        """Run new trials, each with every seed of the search."""
        seeds = self.spec.search.seed_numbers
        self.planned_trials += len(settings)
        results = yield [self._plan(seed, trial, search=True) for trial in settings for seed in seeds]
        for number, trial in enumerate(settings):
            runs = results[number * len(seeds) : (number + 1) * len(seeds)]
            self.trials.append(TrialRuns(trial, list(zip(seeds, runs, strict=True))))

    def _best(self) -> Settings | None:
        """The settings of the best trial so far; None if all failed."""
        primary = self.data.primary
        scores = [trial.means(primary) for trial in self.trials]
        best = best_trial(scores, primary, lower_is_better=self._lower_is_better)
        return None if best is None else self.trials[best].settings

    @property
    def _lower_is_better(self) -> bool:
        return self.data.primary in LOWER_IS_BETTER

    def _plan(self, seed: int, settings: Settings, *, search: bool) -> PlannedRun:
        recipe = self.spec.recipe(self.task, self.variant, seed, settings)
        held_out = search and self.spec.protocol == "clean"
        data: Any = self.search_data if held_out else self.data
        unrelated = None if search else self.spec.unrelated
        return plan_run(recipe, data.sha256, search=held_out, cold=seed == self.spec.seeds[0], unrelated=unrelated)
