"""The protected directions K of every layer, from the inputs that calibration measured."""

from __future__ import annotations

from collections.abc import Mapping

from kasatune.errors import InputError
from kasatune.kasa.truncation.measure_activations import Activations
from kasatune.linalg.leading_directions import InputMoments, LeadingDirections, leading_directions
from kasatune.linalg.threads import side_by_side


def protected_directions(activations: Activations, counts: Mapping[str, int]) -> dict[str, LeadingDirections]:
    """K of every layer, by layer name; layers that read the same tensor share one K.

    K is held in float16: its entries lie between -1 and 1, and rounding turns it by less than 1e-3.

    Args:
        activations: measured with `inputs=True`.
        counts: c by layer name; layers with 0 are left out.

    Raises:
        InputError: the inputs of a layer were not measured.
        ModelError: they hold NaN or infinite values.
    """
    wanted = {name: count for name, count in counts.items() if count}
    missing = [name for name in wanted if name not in activations.inputs]
    if missing:
        raise InputError(
            f"{missing[0]}: its inputs were not calibrated: the configuration was changed after calibrate(base, "
            "config, ...); call calibrate again with the final target_modules and protect"
        )
    jobs: dict[tuple[int, int], tuple[str, InputMoments, int]] = {}
    for name, count in wanted.items():
        jobs.setdefault((id(activations.inputs[name]), count), (name, activations.inputs[name], count))

    def compute(job: tuple[str, InputMoments, int]) -> LeadingDirections:
        name, inputs, count = job
        directions = leading_directions(inputs, count, name=name)
        return LeadingDirections(directions.K.half(), directions.energy)

    computed = dict(zip(jobs, side_by_side(compute, list(jobs.values()), lambda: None), strict=True))
    return {name: computed[id(activations.inputs[name]), count] for name, count in wanted.items()}
