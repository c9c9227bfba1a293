"""4-bit weights of bitsandbytes on the CPU, which its kernel packs in place: unpacked to read, train and save.

On a CPU with AVX512-BF16, bitsandbytes packs a 4-bit weight for its kernel at the first forward pass in evaluation
mode. Its dequantization does not know that layout and returns noise, the kernel has no gradient, and a state_dict
restores the layout with the scales in a wrong order: a model that was evaluated once trains wrongly, and one that was
saved once is damaged. The hooks here restore the usual layout before a pass that trains and before a state_dict; the
next evaluation packs the weight again. What the base computes in evaluation does not change.

Private parts of bitsandbytes that this module relies on, because it has no public way to ask for a weight's layout:

- `Params4bit.quant_state`, with `packing_format_for_cpu`, `original_qshape`, `original_dtype` and
  `original_storage_type`: whether and from what the weight was packed;
- `Linear4bit.support_avx512bf16_for_cpu`, which decides whether a layer is packed;
- the packed layout itself, 32 rows interleaved, as `bitsandbytes.functional._convert_weight_packed_for_cpu` writes it.

A public `Params4bit.unpack()`, or a dequantization that knows the layout, would replace this module.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# Rows that the layout interleaves.
BLOCK = 32


def is_packed(layer: nn.Module) -> bool:
    """Whether the weight of a layer is in the packed layout."""
    return bool(getattr(_quant_state(layer), "packing_format_for_cpu", False))


def dequantize_packed(layer: nn.Module) -> Tensor:
    """W (out, in), float32, of a layer whose weight is packed: W[n, k] = code[q[n, k]] absmax[k // blocksize, n].

    The layer is not modified.
    """
    weight: Any = _weight(layer)
    state = weight.quant_state
    scales = state.absmax.mT.float().repeat_interleave(state.blocksize, dim=1)
    return state.code.float()[_entries(weight.data, state.shape).long()] * scales


def unpack_for_training_and_saving(model: nn.Module) -> None:
    """Make every 4-bit layer of a model safe to train and to save after an evaluation; other layers are left alone."""
    for layer in model.modules():
        marked: Any = layer
        if hasattr(_weight(layer), "quant_state") and not hasattr(layer, "kasatune_unpacks"):
            marked.kasatune_unpacks = True
            state = _quant_state(layer)
            if state is not None and state.shape[-1] % state.blocksize:
                # The kernel reads complete blocks of one row; the ordinary path takes any width.
                marked.support_avx512bf16_for_cpu = False
            layer.register_forward_pre_hook(_unpack_before_training)
            layer.register_state_dict_pre_hook(_unpack_before_state_dict)


def _unpack_before_training(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
    # The opposite of the condition on which bitsandbytes packs.
    if layer.training or (inputs and isinstance(inputs[0], Tensor) and inputs[0].requires_grad):
        _unpack(layer)


def _unpack_before_state_dict(layer: nn.Module, prefix: str, keep_vars: bool) -> None:
    _unpack(layer)


def _unpack(layer: nn.Module) -> None:
    """Restore the usual layout of a packed weight: two entries a byte, row by row."""
    if not is_packed(layer):
        return
    weight: Any = _weight(layer)
    state = weight.quant_state
    entries = _entries(weight.data, state.shape).reshape(-1)
    usual = (entries[0::2] << 4 | entries[1::2]).reshape(state.original_qshape)
    weight.data = usual.view(getattr(state, "original_storage_type", None) or usual.dtype)
    # Doubly quantized scales stay dequantized: quantizing them again would not give the same values.
    state.absmax = state.absmax.mT.reshape(-1).float()
    state.dtype = state.original_dtype
    state.packing_format_for_cpu = False


def _entries(packed: Tensor, shape: tuple[int, int]) -> Tensor:
    """Q (out, in), each entry below 16.

    Args:
        packed: bytes, two entries each. For every 32 rows and 2 columns, 64 entries q[n, k], q[n, k+1], q[n+1, k] ...
            are in 32 bytes: the first 32 entries in the low halves, the others in the high halves.
        shape: (out, in).
    """
    rows, columns = shape
    halves = packed.reshape(rows // BLOCK, columns // 2, BLOCK)
    pairs = torch.cat([halves & 0xF, halves >> 4], dim=-1).reshape(rows // BLOCK, columns // 2, BLOCK, 2)
    return pairs.transpose(1, 2).reshape(rows, columns)


def _weight(layer: nn.Module) -> nn.Parameter | None:
    return dict(layer.named_parameters(recurse=False)).get("weight")


def _quant_state(layer: nn.Module) -> Any:
    return getattr(_weight(layer), "quant_state", None)
