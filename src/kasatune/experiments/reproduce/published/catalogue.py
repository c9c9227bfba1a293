"""The tables that can be reproduced, by name."""

from __future__ import annotations

from collections.abc import Mapping

from kasatune.errors import InputError
from kasatune.experiments.reproduce.published.ablation import ABLATION
from kasatune.experiments.reproduce.published.commonsense import COMMONSENSE
from kasatune.experiments.reproduce.published.e2e import E2E
from kasatune.experiments.reproduce.published.glue import GLUE
from kasatune.experiments.reproduce.published.instruct import INSTRUCT
from kasatune.experiments.reproduce.published.schema import Experiment
from kasatune.recipes.messages import did_you_mean

EXPERIMENTS: Mapping[str, Experiment] = {
    experiment.name: experiment for experiment in (GLUE, E2E, INSTRUCT, COMMONSENSE, ABLATION)
}


def find_experiment(name: str) -> Experiment:
    """The table of this name.

    Raises:
        InputError: there is none.
    """
    if name not in EXPERIMENTS:
        near = did_you_mean(name, EXPERIMENTS) or f"; choose from {', '.join(EXPERIMENTS)}"
        raise InputError(f"{name!r} is not a table that can be reproduced{near}")
    return EXPERIMENTS[name]
