"""aKaSA, activation-aware KaSA: the method `akasa`."""

from __future__ import annotations

from typing import ClassVar

from kasatune.methods.kasa import Kasa
from kasatune.methods.table import METHODS


class Akasa(Kasa):
    """y = W x + s B diag(sigma) A drop(x) with A K = 0, and the penalty of KaSA.

    K (in, c) holds the c = ceil(`protect` in) leading eigenvectors of E[x x^T], the second moments of the layer's
    inputs on text that the base generates, or on training rows (`calibration`). After each step A <- A - (A K) K^T, so
    that the update leaves the layer's output on the strongest input directions as it was. `protect` is 0.02 unless the
    recipe sets it.

    KaSA calls knowledge what the large singular triplets of W hold; here it is what W does with the activations. With
    `drop: d` the component of rank d that activations use least is dropped too (`truncate_by: activation`); by default
    nothing is. sigma starts at 1. K is used in training only: the adapter is the plain product B diag(sigma) A.

    On SmolLM2-135M-Instruct and 320 rows of E2E, ten seeds, the task loss equalled LoRA's (a difference of +0.0001
    nats, -0.0064 to +0.0066), and the loss on unrelated text was 0.132 nats below LoRA's (0.110 to 0.155):
    docs/results/forgetting-smollm2.md.

    Source: this project (docs/concepts.md); computed by kasatune.
    """

    info = METHODS["akasa"]
    default_drop: ClassVar[int | None] = 0
    default_truncate_by: ClassVar[str] = "activation"
    default_protect: ClassVar[float] = 0.02


METHOD = Akasa()
