"""Inspect an adapter: per layer, its update, spectrum, truncation, and alignment with the base weight."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kasatune.adapter_tools.resolve import find_source, is_base_local, open_base
from kasatune.adapters.adapter_files import AdapterFiles, read_tensors
from kasatune.adapters.format_conversion import as_native
from kasatune.adapters.load import read_checked
from kasatune.adapters.lora_export import stock_layers
from kasatune.adapters.lora_settings import check_settings, residual_init
from kasatune.adapters.native_format import scaling_of, trained_factors
from kasatune.adapters.residual_lora import StoredWeight, base_needed, to_plain_lora
from kasatune.errors import InputError, ModelError
from kasatune.io.library_noise import quiet
from kasatune.kasa.functional import Factors, drop_count, orthogonality_norms
from kasatune.linalg import effective_rank, energy_share, product_svd, subspace_alignment
from kasatune.linalg.spectrum import ThinSVD
from kasatune.weights.safetensors_reader import ModelCheckpoint

# A dropped direction counts as restored if the update restores at least this fraction of its singular value.
RESTORED_FRACTION = 0.5


def inspect(directory: Path, base: str | None = None) -> dict[str, Any]:
    """Measure every adapted layer of an adapter; returns {"adapter", "format", "base", "layers": [...]} as plain data.

    For each layer: `name`, `shape` [out, in], `rank`; `update`: norm, singular values and effective rank of dW =
    s B sigma A; for KaSA `sigma`, `orthogonality` (||A A^T - I||_F and ||B^T B - I||_F, by the adapter's
    convention) and `dropped`: the number of triplets.

    If the base is available, `base`: all singular values of W, its norm and effective rank, the ratio of the
    update's norm to it, and the mean squared cosine between the update's singular subspaces and the first and last r
    singular vectors of W (`alignment`, with the value expected of random directions); and in `dropped` the share of
    ||W||_F^2 dropped, and how many of the dropped directions the update restores: u^T dW v >= 0.5 s.

    Args:
        directory: a run, or an adapter in any format that `load_adapter` reads.
        base: name or folder of the base; by default that of the recipe or the adapter, if it is on this machine.

    Raises:
        InputError: `directory` holds no adapter.
        AdapterError: the adapter is damaged, or belongs to another base.
        ModelError: `base` cannot be found.
    """
    source = find_source(directory, base)
    header, kind, _ = read_checked(source.adapter)
    check_settings(header.config, kind)
    files = read_tensors(header)
    with quiet():
        checkpoint = open_base(source) if base is not None or is_base_local(source) else None
    if kind == "lora":
        files = _plain_lora(files, checkpoint)
    layers = [dict(layer) for layer in _layers(files, kind, checkpoint)]
    return {
        "adapter": str(source.adapter),
        "format": kind,
        "base": source.base_name if checkpoint is not None else None,
        "layers": layers,
    }


def _plain_lora(files: AdapterFiles, base: ModelCheckpoint | None) -> AdapterFiles:
    """The adapter as a plain LoRA: of PiSSA and OLoRA, the update includes what they take from the base."""
    init = residual_init(files.config)
    if init is None:
        return files
    if base is None:
        raise base_needed(init)

    def stored_weight(name: str, _: tuple[int, int]) -> StoredWeight:
        stored = base.weight(name)
        if stored is None:
            raise ModelError(f"{base.folder} holds no weight of {name}; name the right base with --base")
        return StoredWeight(stored.read(), base.is_transposed(name))

    return to_plain_lora(files, stored_weight)


def _layers(files: AdapterFiles, kind: str, base: ModelCheckpoint | None) -> Iterator[dict[str, Any]]:
    if kind == "lora":
        for name, (A, B) in sorted(stock_layers(files)[0].items()):
            yield _layer(name, product_svd(B, A), A.shape[0], None, _weight(base, name), (B.shape[0], A.shape[1]))
        return
    native = as_native(files, kind, None)
    for name, factors in sorted(trained_factors(native.tensors)[0].items()):
        A, sigma, B = factors
        core = torch.diag(sigma) if sigma.ndim == 1 else sigma
        update = product_svd(scaling_of(native.config, name) * (B.double() @ core.double()), A)
        shape = (B.shape[0], A.shape[1])
        layer = _layer(name, update, A.shape[0], native.config["convention"], _weight(base, name), shape)
        yield layer | _core(factors, native.config["convention"])


def _layer(
    name: str, update: ThinSVD, rank: int, convention: Any, W: Tensor | None, shape: tuple[int, int]
) -> dict[str, Any]:
    layer: dict[str, Any] = {
        "name": name,
        "shape": list(shape),
        "rank": rank,
        "update": {
            "norm": float(update.S.norm()),
            "singular_values": _numbers(update.S),
            "effective_rank": effective_rank(update.S),
        },
    }
    dropped = drop_count(*shape, rank, convention) if convention is not None else 0
    if convention is not None:
        layer["dropped"] = {"count": dropped}
    if W is None:
        return layer
    if tuple(W.shape) != shape:
        raise ModelError(f"{name} has shape {list(W.shape)} in this base, the adapter needs {list(shape)}")
    U, S, Vh = torch.linalg.svd(W.double(), full_matrices=False)
    layer["base"] = {
        "singular_values": _numbers(S),
        "norm": float(S.norm()),
        "effective_rank": effective_rank(S),
        "update_share": float(update.S.norm() / S.norm()) if S.norm() > 0 else None,
        "alignment": _alignment(update, U, Vh),
    }
    if dropped:
        layer["dropped"] |= {
            "energy": energy_share(S, len(S) - dropped, dropped),
            "singular_values": _numbers(S[-dropped:]),
            "come_back": _restored_count(update, U[:, -dropped:], S[-dropped:], Vh[-dropped:]),
        }
    return layer


def _core(factors: Factors, convention: Any) -> dict[str, Any]:
    sigma = factors.sigma.double()
    norm_A, norm_B = orthogonality_norms(factors, convention)
    return {
        "sigma": _numbers(sigma if sigma.ndim == 1 else torch.linalg.svdvals(sigma)),
        "orthogonality": {"A": float(norm_A), "B": float(norm_B)},
    }


def _alignment(update: ThinSVD, U: Tensor, Vh: Tensor) -> dict[str, float] | None:
    """Mean squared cosines between the update's singular subspaces and the first and last singular vectors of W."""
    rank = int((1e-7 * update.S.max() < update.S).sum()) if len(update.S) and update.S.max() > 0 else 0
    if rank == 0:
        return None
    left, right = update.U[:, :rank], update.Vh[:rank].mT
    alignment = {}
    for name, part in (("top", slice(None, rank)), ("bottom", slice(-rank, None))):
        alignment[name] = (subspace_alignment(left, U[:, part]) + subspace_alignment(right, Vh[part].mT)) / 2
    alignment["chance"] = (rank / U.shape[0] + rank / Vh.shape[1]) / 2
    return alignment


def _restored_count(update: ThinSVD, U: Tensor, S: Tensor, Vh: Tensor) -> int:
    """The number of dropped directions with u^T dW v >= 0.5 s."""
    left, right = U.mT @ update.U.double(), update.Vh.double() @ Vh.mT
    restored = ((left * update.S.double()) * right.mT).sum(dim=1)
    return int(((restored >= RESTORED_FRACTION * S) & (S > 0)).sum())


def _weight(base: ModelCheckpoint | None, name: str) -> Tensor | None:
    """W (out, in) from the base's files; None if it is not stored in full precision."""
    if base is None:
        return None
    stored = base.weight(name)
    if stored is None or not stored.is_float:
        return None
    try:
        tensor = stored.read()
        return tensor.T if base.is_transposed(name) else tensor.flatten(1)
    except AttributeError:
        raise InputError(f"the base has no layer {name}: the adapter is of another model; see --base") from None


def _numbers(values: Tensor) -> list[float]:
    """Rounded to seven digits, the precision of float32."""
    return [float(f"{value:.7g}") for value in values.tolist()]
