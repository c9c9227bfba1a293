"""Checks of recipes that train on pairs of answers: the section `preference`, and what its tasks do not read."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from kasatune.data.tasks.table import TASKS
from kasatune.methods.table import METHODS
from kasatune.recipes.machine_checks import Registered, register
from kasatune.recipes.messages import show
from kasatune.recipes.sections import RecipeSections
from kasatune.wording import counted

_WITH_DIVERGENCES = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft")
"""The losses of preference in which beta log Z(x) of an f-divergence cancels (Wang et al., arXiv 2309.16240)."""

PREFERENCE_CHECKS: Registered = []
"""Every check of this module, with the keys that it reads."""

_keys = partial(register, PREFERENCE_CHECKS)


@_keys("task.name", "task.loss_on")
def _pairs_are_compared_by_their_answers(recipe: RecipeSections) -> Iterator[str]:
    task = recipe.task
    if task.loss_on not in (None, "completion") and task.name in TASKS and TASKS[task.name].compares_with_reference:
        yield f"task.loss_on: {show(task.loss_on)} received; {task.name} compares answers alone; leave it out"


@_keys("task.name", "preference")
def _preference_section_is_for_its_task(recipe: RecipeSections) -> Iterator[str]:
    task = recipe.task
    if recipe.preference is not None and task.name in TASKS and not TASKS[task.name].compares_with_reference:
        compared = ", ".join(name for name, info in TASKS.items() if info.compares_with_reference)
        yield f"preference: {task.name} has no such loss; leave the section out (it is for {compared})"


@_keys("preference")
def _preference_losses_fit_together(recipe: RecipeSections) -> Iterator[str]:
    section = recipe.preference
    if section is None:
        return
    if section.loss_weights is not None and len(section.loss_weights) != len(section.losses):
        yield (
            f"preference.loss_weights: {counted(len(section.loss_weights), 'weight')} received for "
            f"{counted(len(section.losses), 'loss', 'losses')}; give one for each"
        )
    if len(set(section.losses)) < len(section.losses):
        yield f"preference.loss: {', '.join(section.losses)} received; name each loss once"
    if "exo_pair" in section.losses and section.label_smoothing == 0:
        yield "preference.label_smoothing: 0 received; exo_pair needs a value above 0; its paper uses 1e-3"
    other = [loss for loss in section.losses if loss not in _WITH_DIVERGENCES]
    if section.divergence != "reverse_kl" and other:
        yield (
            f"preference.divergence: {show(section.divergence)} received; {', '.join(other)} is defined for reverse_kl "
            f"alone; the losses with other divergences are {', '.join(_WITH_DIVERGENCES)}"
        )
    sorting = [loss for loss in section.losses if loss.startswith("aot")]
    if section.weighting and sorting:
        yield f"preference.weighting: true received; {sorting[0]} sorts its pairs and cannot weight them; leave it out"


@_keys("task.name", "method.dropout")
def _log_probabilities_are_compared_without_dropout(recipe: RecipeSections) -> Iterator[str]:
    task, dropout = TASKS.get(recipe.task.name), recipe.method.dropout
    if task is not None and task.rows == "pairs" and dropout > 0:
        yield (
            f"method.dropout: {dropout} received; {task.name} compares two answers, and TRL trains it without any "
            "dropout, the model's own included; set 0"
        )


@_keys("task.name", "method.anneal")
def _reference_is_what_the_first_step_computes(recipe: RecipeSections) -> Iterator[str]:
    task, anneal = TASKS.get(recipe.task.name), recipe.method.anneal
    if task is not None and task.compares_with_reference and anneal > 0:
        yield (
            f"method.anneal: {anneal:g} received; {task.name} compares the model of each step with that before the "
            "first step, which drops nothing, while the first steps drop a component: the comparison would not start "
            "at 0; leave anneal out"
        )


@_keys("method.name", "task.name")
def _method_can_be_trained_on_pairs(recipe: RecipeSections) -> Iterator[str]:
    info, task = METHODS.get(recipe.method.name), TASKS.get(recipe.task.name)
    if info is None or task is None or task.rows != "pairs" or task.kind not in info.kinds:
        return
    reason = info.no_preference if task.compares_with_reference else info.no_reward
    if reason:
        yield f"method.name: {show(info.name)} received; it cannot do {task.name}: {reason}; choose another method"
