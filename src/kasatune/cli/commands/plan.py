from __future__ import annotations

from typing import TYPE_CHECKING

from kasatune.cli.arguments import Json, Overrides, RecipeFile
from kasatune.cli.console import print_json, print_table, results_only, say
from kasatune.errors import InputError
from kasatune.recipes.catalogue import find_recipe
from kasatune.wording import counted

if TYPE_CHECKING:
    from kasatune.training.calibration_cost import CalibrationCost
    from kasatune.training.plan import Plan


def command(recipe: RecipeFile, overrides: Overrides = None, json: Json = False) -> None:
    """Show what a run will adapt and cost, from the model's configuration alone, without loading weights.

    Example: kasatune plan glue-minilm/rte task.data=path/to/RTE method.r=16

    The exit status is 2 if the run would fail; every reason is listed.
    """
    from kasatune.recipes.schema import load_recipe

    checked = load_recipe(find_recipe(recipe), overrides or (), check_inputs=True)
    with results_only():
        from kasatune.training.plan import make_plan

        plan = make_plan(checked)
    if json:
        print_json(plan.as_dict())
    else:
        _show(plan)
    if plan.problems:
        raise InputError("this run would fail:\n" + "\n".join(f"  - {problem}" for problem in plan.problems))


def _show(plan: Plan) -> None:
    from kasatune.reports import formatting as words

    if plan.layers:
        print_table(["adapted layers", "kind", "out", "in", "rank"], _layer_rows(plan), numbers=3)
        say()
    facts = [
        ("model", f"{plan.model['name']} ({plan.model['architecture']})"),
        ("parameters", words.count(plan.model["parameters"])),
        ("trained, without the head", words.count(plan.trainable_parameters)),
        ("trained, with the head", words.count(_sum(plan.trainable_parameters, plan.head_parameters))),
        *((f"size of {folder}/", words.size(size)) for folder, size in plan.adapter_bytes.items()),
        ("training rows", words.count(plan.rows)),
        *(
            (
                f"of {name} (weight {part['weight']:g})",
                f"{words.count(part['drawn'])} from {words.count(part['train_rows'])}",
            )
            for name, part in plan.parts.items()
        ),
        ("steps per epoch", words.count(plan.steps_per_epoch)),
        ("steps", words.count(plan.steps)),
        *((f"memory, {name} (estimate)", words.size(size)) for name, size in (plan.memory_bytes or {}).items()),
        *(_calibration(plan.calibration) if plan.calibration is not None else ()),
    ]
    print_table(["quantity", "value"], [list(fact) for fact in facts])
    for note in plan.notes:
        say(f"note: {note}")


def _calibration(cost: CalibrationCost) -> list[tuple[str, str]]:
    from kasatune.reports import formatting as words

    return [
        ("calibration, text", f"{counted(cost.tokens, 'token')}, {cost.source}"),
        ("calibration, reading (estimate, on this CPU)", words.duration(cost.reading_seconds)),
        ("calibration, choosing (estimate, on this CPU)", words.duration(cost.choosing_seconds)),
        ("calibration, memory (estimate)", words.size(cost.memory_bytes)),
    ]


def _layer_rows(plan: Plan) -> list[list[str]]:
    """One row for all layers that differ only in their block number."""
    import re

    groups: dict[tuple[str, str, tuple[int, int], int], int] = {}
    for layer in plan.layers:
        key = (re.sub(r"\.\d+\.", ".*.", layer.name), layer.kind, layer.shape, layer.rank)
        groups[key] = groups.get(key, 0) + 1
    return [
        [f"{count} x {name}", kind, str(shape[0]), str(shape[1]), str(rank)]
        for (name, kind, shape, rank), count in groups.items()
    ]


def _sum(trained: int | None, head: int) -> int | None:
    return None if trained is None else trained + head
