"""A sketch of a weight that costs next to nothing and tells one base model from another."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kasatune.errors import AdapterError

SAMPLES = 32

# Largest ||sample - stored|| / ||stored|| at which two samples are of the same weight. A weight of another model, or
# of another layer, gives about 1.4; a 4-bit rounding of the same weight about 0.1.
TOLERANCES = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2, "int8": 5e-2, "int4": 3e-1}


def sketch(W: Tensor) -> dict[str, Any]:
    """Shape and 32 entries of W (out, in) at fixed places, spread over rows and columns.

    Returns:
        {"shape": [out, in], "sample": 32 little-endian float32 in base64}; plain data.
    """
    sample = _sample(W).float().numpy().astype("<f4")
    return {"shape": list(W.shape), "sample": base64.b64encode(sample.tobytes()).decode("ascii")}


def difference(W: Tensor, stored: dict[str, Any]) -> float | None:
    """||sample(W) - stored|| / ||stored||; None where the shapes differ.

    Raises:
        AdapterError: what is stored is no sketch.
    """
    try:
        shape, sample = list(stored["shape"]), np.frombuffer(base64.b64decode(stored["sample"]), dtype="<f4")
    except (KeyError, TypeError, ValueError) as error:
        raise AdapterError("base_fingerprint in the adapter's configuration is damaged: it holds no sketch") from error
    if sample.size != SAMPLES:
        raise AdapterError(f"base_fingerprint in the adapter's configuration is damaged: {sample.size} samples, not 32")
    if list(W.shape) != shape:
        return None
    reference = torch.tensor(sample, dtype=torch.float64)
    return float((_sample(W) - reference).norm() / reference.norm().clamp_min(1e-30))


def tolerance(dtype: torch.dtype, quantized_bits: int | None) -> float:
    """The difference up to which a weight held in this dtype, or quantized to so many bits, is the same weight."""
    if quantized_bits is not None:
        return TOLERANCES["int8" if quantized_bits == 8 else "int4"]
    return TOLERANCES.get(str(dtype).removeprefix("torch."), TOLERANCES["float32"])


def _sample(W: Tensor) -> Tensor:
    rows, columns = W.shape
    steps = torch.arange(SAMPLES, device=W.device)
    # Multiples of the golden ratio spread the places over both dimensions without a pattern of either.
    row = ((steps + 0.5) / SAMPLES * rows).long()
    column = (torch.frac((steps + 1) * 0.6180339887498949) * columns).long()
    return W[row, column].detach().to("cpu", torch.float64)
