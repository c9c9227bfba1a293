"""Convert PiSSA and OLoRA adapters, whose loading changes the base, to plain LoRA adapters of rank 2r on the base."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kasatune.adapters.adapter_files import AdapterFiles, listed
from kasatune.adapters.lora_export import StackedLora, folded_layers, lora_files
from kasatune.adapters.lora_settings import check_settings, residual_init
from kasatune.adapters.native_format import require_untied, scaling_of, weight_in
from kasatune.adapters.recognize_format import configured
from kasatune.errors import AdapterError, InputError, ModelError

# The dtypes of a base from which PEFT computes the initial factors.
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class StoredWeight(NamedTuple):
    """The weight of a layer as the base stores it: (out, in), or (in, out) where `transposed`."""

    tensor: Tensor
    transposed: bool


def residual_part(init: str, weight: StoredWeight, r: int, s: float) -> StackedLora:
    """The part s B0 A0 of W that is taken from the base when PEFT loads the adapter: B (out, r) and A (r, in).

    PiSSA (arXiv 2404.02948, eq. 2 to 4): U_r diag(S_r) Vh_r, the r largest singular triplets of W. OLoRA
    (arXiv 2406.01775): s Q_r R_r of W = Q R, of the weight as it is stored. In float32, as PEFT computes both.

    Args:
        init: "pissa" or "olora".
        weight: W.
        r: the rank of the layer.
        s: its scaling.

    Raises:
        AdapterError: PEFT cannot initialize such a layer.
    """
    stored = weight.tensor
    if stored.ndim != 2 or stored.dtype not in _DTYPES or r > min(stored.shape):
        raise AdapterError(
            f"PEFT has no init_lora_weights={init!r} of rank {r} for a weight of shape {list(stored.shape)} in "
            f"{str(stored.dtype).removeprefix('torch.')}: it is for matrices in float32, float16 or bfloat16 of at "
            "least this rank"
        )
    stored = stored.detach().float()
    if init == "olora":
        Q, R = torch.linalg.qr(stored)
        left, right = s * Q[:, :r], R[:r]
        return StackedLora(left.T, right.T) if weight.transposed else StackedLora(right, left)
    U, S, Vh = torch.linalg.svd(stored.T if weight.transposed else stored, full_matrices=False)
    return StackedLora(Vh[:r], U[:, :r] * S[:r])


def to_plain_lora(files: AdapterFiles, stored_weight: Callable[[str, tuple[int, int]], StoredWeight]) -> AdapterFiles:
    """W' - W = [ s B | -s B0 A0's left factor ] [ A ; its right factor ]: rank 2r and scaling 1 on the untouched base.

    An adapter that changes no base is returned as it is.

    Args:
        files: a stock LoRA adapter.
        stored_weight: returns the weight of a layer, given its name and (out, in).

    Raises:
        AdapterError: a setting has no equivalent plain LoRA.
    """
    check_settings(files.config, "lora")
    init = residual_init(files.config)
    if init is None:
        return files
    layers, rest = folded_layers(files)
    plain = {}
    for name, (A, B) in layers.items():
        part = layer_residual(files.config, init, name, stored_weight(name, (B.shape[0], A.shape[1])))
        plain[name] = StackedLora(torch.cat([A, part.A.to(A)]), torch.cat([B, -part.B.to(B)], dim=1))
    return lora_files(files.config, plain, rest)


def layer_residual(config: dict[str, Any], init: str, name: str, weight: StoredWeight) -> StackedLora:
    """`residual_part` of one layer, with the rank and the scaling of an adapter's configuration.

    Raises:
        AdapterError: as `residual_part`, or the scaling is 0, by which PEFT divides.
    """
    r, s = configured(config, "r", "rank_pattern", name), scaling_of(config, name)
    if init == "pissa" and not s > 0:
        raise AdapterError(f"{listed([name])} has the scaling {s:g}, and init_lora_weights='pissa' needs one above 0")
    try:
        return residual_part(init, weight, r, s)
    except AdapterError as fault:
        raise AdapterError(f"{listed([name])}: {fault}") from fault


def plain_on_model(files: AdapterFiles, base: nn.Module | None) -> AdapterFiles:
    """`to_plain_lora` with the weights of a model, which is not modified.

    Raises:
        InputError: the base is needed and missing.
        ModelError: a layer of the base is quantized, or shares its weight with another module.
        AdapterError: as `to_plain_lora`.
    """
    init = residual_init(files.config)
    if init is not None and base is None:
        check_settings(files.config, "lora")
        raise base_needed(init)
    if init is not None and base is not None:
        require_untied(base, folded_layers(files)[0], f"init_lora_weights={init!r}")

    def stored_weight(name: str, shape: tuple[int, int]) -> StoredWeight:
        assert base is not None
        weight = weight_in(base, name, shape)
        if weight.backend is not None:
            raise ModelError(
                f"{name} is quantized, and init_lora_weights={init!r} changes the weight before it is quantized: give "
                "the base in full precision"
            )
        tensor = weight.read()
        return StoredWeight(tensor.T if weight.transposed else weight.aligned(tensor), weight.transposed)

    return to_plain_lora(files, stored_weight)


def base_needed(init: str) -> InputError:
    """The error for an adapter whose conversion needs its base, where there is none."""
    return InputError(
        f"init_lora_weights={init!r} subtracts from the base's weights what it computes from them when the adapter is "
        "loaded: the conversion needs the base model that it was trained on (base=..., or --base MODEL)"
    )
