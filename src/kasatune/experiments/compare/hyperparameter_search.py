"""Hyperparameter search: every method gets the same number of trials and the same learning rates.

Where the best learning rate of a method is the smallest or largest tried, it gets further trials beyond that edge.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kasatune.errors import MissingExtraError
from kasatune.experiments.compare.spec import SEARCH_SEED, Search, is_fitted
from kasatune.experiments.compare.variants import Variant
from kasatune.methods.table import METHODS
from kasatune.recipes.schema import Recipe

FACTOR = 10.0  # the range of a setting: from its recipe's value / FACTOR to its recipe's value * FACTOR

Settings = dict[str, float]
Space = dict[str, tuple[float, float]]


def search_space(variant: Variant, recipe: Recipe, search: Search) -> Space:
    """(low, high) of each setting that is searched, log-spaced: learning_rate and the keys in the method's `searched`.

    A penalty weight that the variant sets, or that is 0, is not searched. Empty if nothing is searched: with a single
    trial, or for a method that is fitted in closed form.
    """
    if search.trials == 1 or is_fitted(variant.method):
        return {}
    rate = recipe.training.learning_rate
    space = {"learning_rate": (search.low or rate / FACTOR, search.high or rate * FACTOR)}
    for name in METHODS[variant.method].searched:
        value = getattr(recipe.method, name)
        if name not in variant.settings and value > 0:
            space[name] = (value / FACTOR, value * FACTOR)
    return space


def fixed_trials(space: Space, search: Search) -> list[Settings] | None:
    """All trials of a grid or random search; None for Optuna, which chooses each trial from the earlier ones.

    "grid" takes `trials` learning rates, log-spaced from low to high and the same for every method. A further setting
    takes log-spaced values of its range, one per trial, in an order drawn once (a Latin hypercube). "random" draws
    every setting log-uniformly; the learning rates are again the same for every method.
    """
    if search.kind == "optuna":
        return None
    generator = np.random.default_rng(SEARCH_SEED)
    columns: dict[str, Sequence[float]] = {}
    for name, (low, high) in space.items():  # learning_rate is drawn first, so every method gets the same draws
        if search.kind == "grid":
            shares = np.linspace(0, 1, search.trials)
            shares = shares if name == "learning_rate" else generator.permutation(shares)
        else:
            shares = generator.random(search.trials)
        columns[name] = [_rounded(low * (high / low) ** share) for share in shares]
    return [{name: values[trial] for name, values in columns.items()} for trial in range(search.trials)]


class OptunaSearch:
    """Optuna's TPE sampler with a fixed seed; failed trials are reported to it as failed.

    Raises:
        MissingExtraError: Optuna is not installed.
    """

    def __init__(self, space: Space, search: Search) -> None:
        try:
            import optuna
        except ImportError as fault:
            raise MissingExtraError("--search optuna", "search") from fault
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space = space
        sampler = optuna.samplers.TPESampler(seed=SEARCH_SEED, n_startup_trials=max(2, search.trials // 2))
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._failed = optuna.trial.TrialState.FAIL
        self._trial: Any = None

    def ask(self) -> Settings:
        """Return the settings of the next trial."""
        self._trial = self._study.ask()
        return {
            name: _rounded(self._trial.suggest_float(name, low, high, log=True))
            for name, (low, high) in self._space.items()
        }

    def tell(self, score: float | None) -> None:
        """Report the score of the last trial, higher is better; None if the run failed."""
        if score is None or not math.isfinite(score):
            self._study.tell(self._trial, state=self._failed)
        else:
            self._study.tell(self._trial, score)


def best_trial(scores: Sequence[Mapping[str, float] | None], primary: str, *, lower_is_better: bool) -> int | None:
    """Index of the best trial by `primary`, ties broken by smaller loss, then order; None if all trials failed."""

    def key(index: int) -> tuple[float, float, int]:
        metrics = scores[index]
        assert metrics is not None
        value = metrics.get(primary, math.nan)
        value = -math.inf if math.isnan(value) else (-value if lower_is_better else value)
        loss = metrics.get("loss", math.inf)
        return -value, math.inf if math.isnan(loss) else loss, index

    return min((index for index, metrics in enumerate(scores) if metrics is not None), key=key, default=None)


def at_the_edge(chosen: Settings, space: Space, tried: Sequence[Settings]) -> bool:
    """Whether the chosen learning rate is the smallest or largest tried; a better one may lie outside the range."""
    rates = [settings["learning_rate"] for settings in tried if "learning_rate" in settings]
    return bool(space) and len(rates) > 1 and chosen.get("learning_rate") in (min(rates), max(rates))


def beyond_the_edge(chosen: Settings, tried: Sequence[Settings]) -> Settings | None:
    """The next trial if the chosen learning rate is the smallest or largest tried: one step further, else None.

    The step is the ratio of the rate at the edge to its neighbour; the other settings are the chosen ones.
    """
    rates = sorted({settings["learning_rate"] for settings in tried if "learning_rate" in settings})
    rate = chosen.get("learning_rate")
    if len(rates) < 2 or rate not in (rates[0], rates[-1]):
        return None
    further = rate * rates[-1] / rates[-2] if rate == rates[-1] else rate * rates[0] / rates[1]
    rounded = _rounded(further)
    return None if rounded in rates or not 0 < rounded < math.inf else {**chosen, "learning_rate": rounded}


def _rounded(value: float) -> float:
    """Round to four significant digits, which are easy to read and type."""
    return float(f"{value:.4g}")
