"""Starting factors of LoRA that are computed from data: calibration rows, gradients of weights, one process for all."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraGAConfig, preprocess_loraga
from torch import Tensor, nn

from kasatune.distributed.process_group import broadcast_from_first, is_main
from kasatune.errors import DataError, InputError, KasatuneError, ModelError
from kasatune.kasa.truncation.compute_tails import are_decompositions_shared, decompositions_shared
from kasatune.methods.lora import ADAPTER_NAME, lora_layers
from kasatune.methods.shared.method import MethodSettings
from kasatune.methods.shared.residual_lora import ResidualLora, initial_factors, remember_initial_factors
from kasatune.wording import counted

CALIBRATION_ROWS = 64
_GRADIENT_ROWS = 8

_Result = TypeVar("_Result")


class Factors(NamedTuple):
    """A (r, in) and B (out, r) of one layer, on the CPU."""

    A: Tensor
    B: Tensor


class CalibratedResidualLora(ResidualLora):
    """y = (W - s B0 A0) x + s B A drop(x), with A0 and B0 computed from data before the first step.

    A checkpoint holds A0 and B0, so that a resumed run has the W - s B0 A0 of the first start.
    """

    def prepare(self, model: nn.Module, settings: MethodSettings, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """See `Method.prepare`: A0 and B0."""
        chosen = computed_once(lambda: self.starting_factors(model, settings, batches))
        for name, layer in lora_layers(model):
            _move_into_factors(layer, chosen[name])
        remember_initial_factors(model)

    @abstractmethod
    def starting_factors(
        self, model: nn.Module, settings: MethodSettings, batches: Iterable[Mapping[str, Tensor]]
    ) -> dict[str, Factors]:
        """A0 and B0 of every layer by name; the model is left as it was. Other arguments as in `Method.prepare`."""

    def training_state(self, model: nn.Module) -> dict[str, Tensor]:
        """See `Method.training_state`: A0 and B0."""
        named = initial_factors(model).items()
        return {f"{name}.{key}": value for name, (A0, B0) in named for key, value in (("A0", A0), ("B0", B0))}

    def restore_training_state(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """See `Method.restore_training_state`."""
        current = initial_factors(model)
        for name, layer in lora_layers(model):
            saved = Factors(state[f"{name}.A0"], state[f"{name}.B0"])
            if not all(torch.equal(ours, theirs) for ours, theirs in zip(current[name], saved, strict=True)):
                _add_to_weight(layer, Factors(*current[name]), +1)
                _move_into_factors(layer, saved)
        remember_initial_factors(model)


def _move_into_factors(layer: Any, factors: Factors) -> None:
    """Set A and B, and subtract s B A from the weight, computed from A and B as they are rounded to their dtype."""
    A, B = layer.lora_A[ADAPTER_NAME].weight, layer.lora_B[ADAPTER_NAME].weight
    with torch.no_grad():
        A.copy_(factors.A)
        B.copy_(factors.B)
    _add_to_weight(layer, Factors(A.detach(), B.detach()), -1)


@torch.no_grad()
def _add_to_weight(layer: Any, factors: Factors, sign: int) -> None:
    weight = layer.get_base_layer().weight
    wide = torch.promote_types(weight.dtype, torch.float32)
    A, B = (factor.to(weight.device, wide) for factor in factors)
    change = layer.scaling[ADAPTER_NAME] * B @ A
    weight.copy_(weight.to(wide) + sign * (change.T if layer.fan_in_fan_out else change))


def computed_once(compute: Callable[[], _Result]) -> _Result:
    """The result of `compute()`; in a distributed run the first process computes it for all.

    Processes on different hardware round differently, and would start from different models. Tensors in the result
    must be on the CPU.
    """
    shared = are_decompositions_shared()
    result: _Result | KasatuneError | None = None
    if is_main() or not shared:
        try:
            with decompositions_shared(False):
                result = compute()
        except KasatuneError as error:
            if not shared:
                raise
            result = error
    if shared:
        result = broadcast_from_first(result)
    if isinstance(result, KasatuneError):
        raise result
    return result  # pyright: ignore[reportReturnType] - the first process has either computed it or failed


def first_rows(batches: Iterable[Mapping[str, Tensor]], count: int) -> Iterator[dict[str, Tensor]]:
    """The first `count` rows of collated batches; the last batch is cut."""
    for batch in batches:
        rows = len(next(iter(batch.values())))
        yield {key: value[:count] for key, value in batch.items()}
        count -= rows
        if count <= 0:
            return


def without_labels(batches: Iterable[Mapping[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """The batches without their labels."""
    return ({key: value for key, value in batch.items() if key != "labels"} for batch in batches)


def calibration_source(settings: MethodSettings, *, generates: bool, labelled: bool = False) -> str:
    """The text to calibrate on, "generated" or "task".

    Args:
        settings: of the method.
        generates: whether the base can generate text.
        labelled: whether the labels of training rows are needed.
    """
    if settings.calibration.source != "auto":
        return settings.calibration.source
    return "generated" if generates and not labelled else "task"


def calibration_batches(
    settings: MethodSettings, base: Any, batches: Iterable[Mapping[str, Tensor]], *, labelled: bool = False
) -> Iterator[dict[str, Tensor]] | None:
    """The text of `settings.calibration` on which a base is measured; None for text that the base generates.

    Args:
        settings: of the method.
        base: the base model.
        batches: collated training rows with labels.
        labelled: keep the labels, in batches of at most 8 rows, whose activations a gradient holds.

    Raises:
        InputError: the base cannot generate the text that the settings name.
    """
    if calibration_source(settings, generates=base.can_generate(), labelled=labelled) == "generated":
        if not base.can_generate():
            raise InputError(
                f'method.calibration: "generated" received; {type(base).__name__} cannot generate text; use task'
            )
        return None
    rows = first_rows(batches, settings.calibration.rows)
    return _pieces(rows, _GRADIENT_ROWS) if labelled else without_labels(rows)


def _pieces(batches: Iterable[Mapping[str, Tensor]], size: int) -> Iterator[dict[str, Tensor]]:
    for batch in batches:
        for start in range(0, len(next(iter(batch.values()))), size):
            yield {key: value[start : start + size] for key, value in batch.items()}


def weight_gradients(
    model: nn.Module, layers: Mapping[str, Any], name: str, batches: Iterable[Mapping[str, Tensor]], samples: int
) -> dict[str, Tensor]:
    """The gradient of the loss in every adapted weight, by layer name, (out, in), on the weight's device.

    The mean over the batches of the first `samples` rows, estimated by PEFT in training mode, as its LoRA-GA does. A
    layer that the loss does not reach is left out.

    Args:
        model: with an attached adapter that is not trained yet.
        layers: PEFT's layers of the adapter, by their names in the model.
        name: of the method, for error messages.
        batches: collated training rows with labels.
        samples: how many rows are read.

    Raises:
        DataError: there are no rows, or they have no labels.
        ModelError: the gradient of a weight holds NaN or infinite values.
    """
    rows = list(first_rows(batches, samples))
    if not rows or "labels" not in rows[0]:
        what = "have no labels" if rows else "are missing"
        raise DataError(f"method {name!r} starts from the gradient on training rows, which {what}; give labelled rows")
    config = LoraConfig(
        target_modules=[f"{layer}.base_layer" for layer in layers],
        init_lora_weights="lora_ga",  # pyright: ignore[reportArgumentType] - missing in the annotation
        lora_ga_config=LoraGAConfig(),
    )

    def train_step() -> None:
        for batch in rows:
            model(**batch).loss.backward()

    with warnings.catch_warnings():  # of PEFT's hooks on layers whose inputs need no gradient, where they work too
        warnings.filterwarnings("ignore", "Full backward hook is firing")
        preprocess_loraga(model, config, train_step)
    gradients: dict[str, Tensor] = {}
    for layer_name, layer in layers.items():
        base = layer.get_base_layer()
        if not hasattr(base, "_peft_loraga_grad"):
            continue
        gradient = base._peft_loraga_grad
        del base._peft_loraga_grad
        if not bool(torch.isfinite(gradient).all()):
            raise ModelError(
                f"method {name!r}: the gradient of {layer_name} on {counted(samples, 'training row')} is not finite; "
                "check the rows and the checkpoint, or load the base in float32"
            )
        gradients[layer_name] = gradient.T if layer.fan_in_fan_out else gradient
    return gradients
