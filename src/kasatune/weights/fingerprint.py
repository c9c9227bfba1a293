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
# of another layer, gives about 1.4; a rounding of the same weight to 4 bits about 0.1, to 3 bits 0.2, to 2 bits 0.5.
TOLERANCES = {
    "float32": 1e-5,
    "float16": 2e-3,
    "bfloat16": 1e-2,
    "int8": 5e-2,
    "int4": 3e-1,
    "int3": 5e-1,
    "int2": 8e-1,
}


def sketch(W: Tensor, bits: int | None = None) -> dict[str, Any]:
    """Shape and 32 entries of W (out, in) at fixed places, spread over rows and columns.

    Args:
        W: the weight.
        bits: of an entry, where W is a quantized weight opened again.

    Returns:
        {"shape": [out, in], "sample": 32 little-endian float32 in base64}, and "bits"; plain data.
    """
    sample = _sample(W).float().numpy().astype("<f4")
    quantized = {} if bits is None else {"bits": bits}
    return {"shape": list(W.shape), "sample": base64.b64encode(sample.tobytes()).decode("ascii"), **quantized}


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


def tolerance(dtype: torch.dtype, quantized_bits: int | None, stored: dict[str, Any] | None = None) -> float:
    """The difference up to which two samples are of the same weight.

    Args:
        dtype: in which the weight is held now.
        quantized_bits: to which it is quantized now, None for a float weight.
        stored: the sketch that it is held against; it may be of a quantized weight itself.
    """
    here = TOLERANCES.get(str(dtype).removeprefix("torch."), TOLERANCES["float32"])
    counts = [bits for bits in (quantized_bits, (stored or {}).get("bits")) if isinstance(bits, int)]
    return max([here, *(TOLERANCES["int8" if bits >= 8 else f"int{min(max(bits, 2), 4)}"] for bits in counts)])


def _sample(W: Tensor) -> Tensor:
    rows, columns = W.shape
    steps = torch.arange(SAMPLES, device=W.device)
    # Multiples of the golden ratio spread the places over both dimensions without a pattern of either.
    row = ((steps + 0.5) / SAMPLES * rows).long()
    column = (torch.frac((steps + 1) * 0.6180339887498949) * columns).long()
    return W[row, column].detach().to("cpu", torch.float64)
