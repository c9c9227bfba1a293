"""Fingerprints of a base model: sketches of single weights, and SHA-256 digests of weights, parameters and files.

Every digest here is stored somewhere: in adapters, certificates, metrics.json, tail caches and run ids. The bytes that
are hashed must never change, or digests written earlier would no longer match.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from kasatune.errors import AdapterError
from kasatune.wording import counted

SKETCH_SAMPLES = 32
PARAMETER_SAMPLES = 256

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

_ENTRIES_AT_ONCE = 2**22
_MODEL_FILE_SUFFIXES = (".json", ".safetensors", ".txt", ".bin", ".model")


def weight_sketch(W: Tensor, bits: int | None = None) -> dict[str, Any]:
    """Shape and 32 entries of W (out, in), at fixed positions spread over rows and columns.

    Args:
        W: the weight.
        bits: bits per entry, if W is a dequantized weight.

    Returns:
        {"shape": [out, in], "sample": 32 little-endian float32 in base64}, and "bits"; plain data.
    """
    sample = _sample(W).float().numpy().astype("<f4")
    quantized = {} if bits is None else {"bits": bits}
    return {"shape": list(W.shape), "sample": base64.b64encode(sample.tobytes()).decode("ascii"), **quantized}


def sketch_distance(W: Tensor, sketch: Mapping[str, Any]) -> float | None:
    """||sample(W) - sketch|| / ||sketch||; None if the shapes differ.

    Raises:
        AdapterError: `sketch` is not a valid sketch.
    """
    try:
        shape, sample = list(sketch["shape"]), np.frombuffer(base64.b64decode(sketch["sample"]), dtype="<f4")
    except (KeyError, TypeError, ValueError) as error:
        raise AdapterError(
            "base_fingerprint in the adapter's configuration is damaged: expected a shape and a sample for each layer. "
            "Copy the adapter again."
        ) from error
    if sample.size != SKETCH_SAMPLES:
        raise AdapterError(
            f"base_fingerprint in the adapter's configuration is damaged: {counted(sample.size, 'sample')}, expected "
            f"{SKETCH_SAMPLES}. Copy the adapter again."
        )
    if list(W.shape) != shape:
        return None
    reference = torch.tensor(sample, dtype=torch.float64)
    return float((_sample(W) - reference).norm() / reference.norm().clamp_min(1e-30))


def sketch_tolerance(dtype: torch.dtype, quantized_bits: int | None, sketch: Mapping[str, Any] | None = None) -> float:
    """The largest `sketch_distance` at which a weight counts as the sketched one.

    Args:
        dtype: the dtype of the weight now.
        quantized_bits: bits per entry if the weight is quantized now, None for a float weight.
        sketch: the stored sketch, which may itself be of a quantized weight.
    """
    by_dtype = TOLERANCES.get(str(dtype).removeprefix("torch."), TOLERANCES["float32"])
    counts = [bits for bits in (quantized_bits, (sketch or {}).get("bits")) if isinstance(bits, int)]
    return max([by_dtype, *(TOLERANCES["int8" if bits >= 8 else f"int{min(max(bits, 2), 4)}"] for bits in counts)])


def weight_values_sha256(W: Tensor) -> str:
    """SHA-256 of the shape and values of W (out, in), row by row in little-endian float32 (float64 for float64).

    A 16-bit weight and the same weight widened to float32 have the same digest. At most a few megabytes are copied at
    a time.
    """
    wide = torch.float64 if W.dtype == torch.float64 else torch.float32
    rows, columns = W.shape
    digest = hashlib.sha256(f"{wide} {rows} {columns}\n".encode())
    step = max(1, _ENTRIES_AT_ONCE // max(columns, 1))
    for start in range(0, rows, step):
        part = W[start : start + step].detach().to("cpu", wide).contiguous().numpy()
        digest.update(part.astype(part.dtype.newbyteorder("<"), copy=False).data)
    return digest.hexdigest()


def parameters_sha256(parameters: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over name, dtype, shape and all bytes of (name, tensor) pairs, in the given order."""
    digest = hashlib.sha256()
    for name, tensor in parameters:
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(_bytes_of(tensor.detach()))
    return digest.hexdigest()


def sampled_parameters_sha256(model: nn.Module, leave_out: Collection[str] = ()) -> str:
    """SHA-256 over name, shape, dtype and 256 entries of every parameter of a base model, in order of names.

    Tells a model from other models, and from itself after training, at almost no cost. It does not detect a deliberate
    change of entries that are not sampled; a hub commit or the hashes of the files do.

    Args:
        model: the base, before a method modifies it.
        leave_out: names of modules to skip, such as a new head that the checkpoint does not contain.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if any(name.startswith(f"{module}.") for module in leave_out):
            continue
        for part_name, tensor in _plain_tensors(name, parameter.detach()):
            flat = tensor.reshape(-1)
            places = torch.linspace(0, max(len(flat) - 1, 0), min(PARAMETER_SAMPLES, len(flat)), dtype=torch.float64)
            digest.update(f"{part_name} {list(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(_bytes_of(flat[places.long().to(flat.device)]))
    return digest.hexdigest()


def model_files_sha256(folder: Path) -> str:
    """SHA-256 over names and contents of the files of a model folder: weights, configuration and tokenizer."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in _MODEL_FILE_SUFFIXES:
            with path.open("rb") as file:
                digest.update(f"{path.name}\n".encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _sample(W: Tensor) -> Tensor:
    rows, columns = W.shape
    steps = torch.arange(SKETCH_SAMPLES, device=W.device)
    # Multiples of the golden ratio spread the positions over both dimensions without a pattern in either.
    row = ((steps + 0.5) / SKETCH_SAMPLES * rows).long()
    column = (torch.frac((steps + 1) * 0.6180339887498949) * columns).long()
    return W[row, column].detach().to("cpu", torch.float64)


def _plain_tensors(name: str, parameter: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The plain tensors of a parameter: itself, or the codes and scales of a torchao subclass."""
    if is_traceable_wrapper_subclass(parameter):
        for part in parameter.__tensor_flatten__()[0]:
            yield from _plain_tensors(f"{name}.{part}", getattr(parameter, part))
    else:
        yield name, parameter


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
