"""bitsandbytes' 4-bit weights as its CPU kernel rearranges them: read, differentiated through and saved rightly.

On a CPU with AVX512-BF16, bitsandbytes rearranges a 4-bit weight in place at the first forward pass in evaluation mode.
Its own dequantization does not know that layout and returns noise, its kernel for it has no gradient, and a state_dict
turns the layout back with the scales in a wrong order: a model that was evaluated once trains wrongly, and one that was
saved once is damaged. Nothing here changes what the base computes.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

# Rows that the layout interleaves.
BLOCK = 32


def is_packed(layer: nn.Module) -> bool:
    """Whether the layer's weight has been rearranged."""
    return bool(getattr(getattr(layer._parameters.get("weight"), "quant_state", None), "packing_format_for_cpu", False))


def dequantized(layer: nn.Module) -> Tensor:
    """W (out, in), float32, of a layer whose weight has been rearranged; the layer is left as it is."""
    weight: Any = layer._parameters["weight"]
    state = weight.quant_state
    return _dequantize(weight.data, state.shape, state.absmax, state.code, state.blocksize)


def protect(model: nn.Module) -> None:
    """Make every 4-bit layer of a model safe to train after an evaluation and to save; other models are left alone."""
    layers = [m for m in model.modules() if hasattr(m._parameters.get("weight"), "quant_state")]
    for layer in layers:
        if _turn_back not in layer._state_dict_pre_hooks.values():
            layer.register_state_dict_pre_hook(_turn_back)
    if layers:
        _register_gradient()


def _turn_back(layer: nn.Module, prefix: str, keep_vars: bool) -> None:
    """Give a rearranged weight its usual layout before a state_dict; the next evaluation rearranges it to the same."""
    if not is_packed(layer):
        return
    weight: Any = layer._parameters["weight"]
    state = weight.quant_state
    entries = _entries(weight.data, state.shape).reshape(-1)
    usual = (entries[0::2] << 4 | entries[1::2]).reshape(state.original_qshape)
    weight.data = usual.view(getattr(state, "original_storage_type", None) or usual.dtype)
    # Doubly quantized scales stay opened: quantizing them again would not give the same.
    state.absmax = state.absmax.mT.reshape(-1).float()
    state.dtype = state.original_dtype
    state.packing_format_for_cpu = False


def _dequantize(packed: Tensor, shape: Any, absmax: Tensor, code: Tensor, blocksize: int) -> Tensor:
    """W[n, k] = code[q[n, k]] absmax[k // blocksize, n].

    Args:
        packed: see `_entries`.
        shape: (out, in).
        absmax: (in / blocksize, out).
        code: the 16 values of an entry.
        blocksize: entries of a row that share a scale.
    """
    scales = absmax.mT.float().repeat_interleave(blocksize, dim=1)
    return code.float()[_entries(packed, shape).long()] * scales


def _entries(packed: Tensor, shape: Any) -> Tensor:
    """Q (out, in), each below 16.

    Args:
        packed: bytes, two entries each. For every 32 rows and 2 columns, 64 entries q[n, k], q[n, k+1], q[n+1, k] ...
            lie in 32 bytes: the first 32 entries in the low halves, the others in the high halves.
        shape: (out, in).
    """
    rows, columns = shape
    halves = packed.reshape(rows // BLOCK, columns // 2, BLOCK)
    pairs = torch.cat([halves & 0xF, halves >> 4], dim=-1).reshape(rows // BLOCK, columns // 2, BLOCK, 2)
    return pairs.transpose(1, 2).reshape(rows, columns)


class _PackedMatmul(torch.autograd.Function):
    """bitsandbytes' kernel, with the gradient by its input."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, packed: Tensor, shape: Any, absmax: Tensor, code: Tensor, blocksize: int
    ) -> Tensor:
        ctx.save_for_backward(packed, absmax, code)
        ctx.layout, ctx.dtype = (shape, blocksize), x.dtype
        with torch._C._AutoDispatchBelowAutograd():
            # A copy, because bitsandbytes adds the bias in place.
            return torch.ops.bitsandbytes.gemv_4bit(x, packed, shape, absmax, code, blocksize).clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        packed, absmax, code = ctx.saved_tensors
        shape, blocksize = ctx.layout
        W = _dequantize(packed, shape, absmax, code, blocksize)
        return (grad.to(W.dtype) @ W).to(ctx.dtype), None, None, None, None, None


@functools.cache
def _register_gradient() -> torch.library.Library | None:
    """Give bitsandbytes' kernel for rearranged weights the gradient by its input; once a process.

    Returns:
        The registration, which lasts as long as it is held; None where bitsandbytes brings a gradient of its own.
    """
    registration = torch.library.Library("bitsandbytes", "IMPL")
    try:
        registration.impl("gemv_4bit", _PackedMatmul.apply, "AutogradCPU")
    except RuntimeError:
        return None
    return registration
