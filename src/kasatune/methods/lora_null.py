"""LoRA-Null: LoRA that starts in the null space of activations, the directions that they use least."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from kasatune.errors import ModelError
from kasatune.io.run_layout import ADAPTER
from kasatune.kasa.truncation.measure_activations import measure_on
from kasatune.linalg.eigen import smallest_eigenpairs
from kasatune.linalg.leading_directions import InputMoments
from kasatune.linalg.threads import one_blas_thread
from kasatune.methods.lora import ADAPTER_NAME, lora_layers
from kasatune.methods.shared.method import MethodSettings, TaskKind
from kasatune.methods.shared.peft_adapter import as_peft_model
from kasatune.methods.shared.starting_factors import CalibratedResidualLora, Factors, calibration_batches
from kasatune.methods.table import METHODS
from kasatune.weights.quantized_weight import weight_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LoraNull(CalibratedResidualLora):
    """y = (W - s B0 A0) x + s B A drop(x), W N N^T = U S Vh: B0 = U sqrt(S / s), A0 = sqrt(S / s) Vh.

    N (in, r) holds the eigenvectors of the r smallest eigenvalues of C = E[x x^T], the second moments of the layer's
    inputs: A starts in the directions that activations use least. `freeze_a` trains B alone, so that the update stays
    within these directions. Activations are measured as for `akasa`: on text that the base generates, or on training
    rows (`calibration`); with fewer tokens than inputs C has a null space, in which the choice of N is arbitrary.

    The authors read 256 sequences of 2,048 tokens of questions, divide every row by its largest activation, and use
    s = 1 (`alpha` = `r`).

    Source: Tang et al., arXiv 2503.02659, and HungerPWAY/LoRA-Null; PEFT's LoRA layers, initialized here.
    """

    info = METHODS["lora-null"]

    def attach(
        self, model: PreTrainedModel, settings: MethodSettings, kind: TaskKind, new_modules: Sequence[str]
    ) -> nn.Module:
        """See `Method.attach`."""
        wrapped = super().attach(model, settings, kind, new_modules)
        for name, layer in lora_layers(wrapped):
            if settings.r > layer.in_features:
                raise ModelError(
                    f"method.r: {settings.r} received; {name} has only {layer.in_features} input directions; lower r, "
                    "or leave the layer out"
                )
            if settings.options["freeze_a"]:
                layer.lora_A[ADAPTER_NAME].weight.requires_grad_(False)
        return wrapped

    def stored_numbers(
        self, trained: int, shapes: Sequence[tuple[int, int]], settings: MethodSettings
    ) -> dict[str, int]:
        """See `Method.stored_numbers`: rank 2r, A included where it is frozen."""
        return {ADAPTER: 2 * settings.r * sum(sum(shape) for shape in shapes)}

    def starting_factors(
        self, model: nn.Module, settings: MethodSettings, batches: Iterable[Mapping[str, Tensor]]
    ) -> dict[str, Factors]:
        """See `CalibratedResidualLora.starting_factors`."""
        base: Any = as_peft_model(model).get_base_model()
        layers = dict(lora_layers(model))
        weights = {name: weight_of(layer.get_base_layer()) for name, layer in layers.items()}
        moments = measure_on(
            base, weights, calibration_batches(settings, base, batches), inputs=True, tails=False
        ).inputs
        directions: dict[int, Tensor] = {}  # layers that read one tensor share its moments
        factors: dict[str, Factors] = {}
        for name, layer in layers.items():
            inputs = moments[name]
            if id(inputs) not in directions:
                directions[id(inputs)] = least_used_directions(inputs, settings.r)
            N = directions[id(inputs)]
            U, S, Vh = torch.linalg.svd(weights[name].read().double().cpu() @ N, full_matrices=False)
            root = (S / layer.scaling[ADAPTER_NAME]).sqrt()
            A, B = root[:, None] * (Vh @ N.T), U * root
            missing = settings.r - len(S)  # of a layer with fewer outputs than r
            pad = nn.functional.pad
            factors[name] = Factors(pad(A, (0, 0, 0, missing)).float(), pad(B, (0, missing)).float())
        return factors


def least_used_directions(inputs: InputMoments, r: int) -> Tensor:
    """N (in, r), orthonormal columns, float64: the eigenvectors of the r smallest eigenvalues of E[x x^T]."""
    if inputs.moments is not None:
        C = inputs.moments.double().cpu().numpy().copy()
    else:
        assert inputs.rows is not None
        rows = inputs.rows.double().cpu().numpy()
        C = rows.T @ rows / len(rows)
    if not np.isfinite(C).all():
        raise ModelError(
            "method 'lora-null': the activations on the calibration text hold NaN or infinite values; check the "
            "checkpoint, or load the base in float32"
        )
    with one_blas_thread:
        return torch.from_numpy(np.ascontiguousarray(smallest_eigenpairs(C, r)[1]))


METHOD = LoraNull()
