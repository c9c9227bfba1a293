"""The adapted linear layer as one fused autograd function: fewer passes over the wide tensors than plain autograd."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

from kasatune.kasa.functional import Factors


class Tail(NamedTuple):
    """The dropped component U V: U (out, q) with the singular values folded in, V (q, in)."""

    U: Tensor
    V: Tensor


def adapted_linear(
    x: Tensor, base_layer: nn.Module, factors: Factors, tail: Tail | None, scaling: float, *args: Any, **kwargs: Any
) -> Tensor:
    """Y = W x + b - U V x + s B core(sigma) A x, in as few passes as PyTorch allows.

    Scale, sigma and the tail's sign act on the (r + q)-wide activation; its product with [B | U] is accumulated by
    the matrix product itself onto W x. A plain frozen base layer joins the same function, so that its input gradient
    is accumulated too; any other (quantized, hooked, trained) is called as a module.

    Args:
        x: (..., in).
        base_layer: gives W x + b.
        factors: A (r, in), sigma (r,) or (r, r), B (out, r).
        tail: None if nothing is dropped, or if the tail is folded into W.
        scaling: s.
        args: passed to the base layer.
        kwargs: passed to the base layer.

    Returns:
        (..., out), in the dtype of the base layer's output; saved for backward are x and the (tokens, r) activation.
    """
    weight, bias, result = None, None, None
    if args or kwargs or not _is_plain(base_layer) or base_layer.weight.dtype != x.dtype:
        result = base_layer(x, *args, **kwargs)
    else:
        weight = base_layer.weight.mT if isinstance(base_layer, Conv1D) else base_layer.weight
        bias = base_layer.bias
    U, V = (None, None) if tail is None else tail
    return _AdaptedLinear.apply(x, result, weight, bias, *factors, U, V, scaling)


def _is_plain(layer: nn.Module) -> bool:
    """Whether calling the layer's module computes W x + b with frozen W and b, and nothing else."""
    return (
        type(layer) in (nn.Linear, Conv1D)
        and "forward" not in layer.__dict__
        and not (
            layer._forward_hooks  # pyright: ignore[reportPrivateUsage]
            or layer._forward_pre_hooks  # pyright: ignore[reportPrivateUsage]
            or layer._backward_hooks  # pyright: ignore[reportPrivateUsage]
            or layer._backward_pre_hooks  # pyright: ignore[reportPrivateUsage]
        )
        and type(layer.weight) is nn.Parameter
        and not any(p.requires_grad for p in layer.parameters(recurse=False))
    )


class _AdaptedLinear(torch.autograd.Function):
    """The function behind `adapted_linear`; either `result` (W x + b) or `weight` (out, in) is given."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        result: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        A: Tensor,
        sigma: Tensor,
        B: Tensor,
        U: Tensor | None,
        V: Tensor | None,
        scaling: float,
    ) -> Tensor:
        tokens = x.reshape(-1, x.shape[-1])
        narrow = tokens.to(A.dtype) @ _stacked(A, V, 0).mT
        core = _core(sigma, scaling)
        hidden = narrow[:, : A.shape[0]].clone() if U is not None else narrow
        wide = _through_core(narrow, core, A.shape[0]).to(B.dtype)
        rows = _stacked(B, U, 1).mT
        if weight is None:
            assert result is not None
            base = result.reshape(-1, result.shape[-1])
            # `result` belongs to the caller and is not modified.
            common = torch.promote_types(base.dtype, B.dtype)
            wide, rows = wide.to(common), rows.to(common)
            out = (
                torch.addmm(base, wide, rows)
                if base.dtype == common
                else base.to(common).addmm_(wide, rows).to(base.dtype)
            )
        elif weight.dtype == B.dtype:
            base = torch.addmm(bias, tokens, weight.mT) if bias is not None else tokens @ weight.mT
            out = base.addmm_(wide, rows)
        else:
            # The small part comes first: the product with W is added to it before rounding to 16 bits. W x rounded
            # by itself would lose most of the tail.
            out = (wide @ rows).to(weight.dtype).addmm_(tokens, weight.mT)
            out = out if bias is None else out.add_(bias)
        ctx.save_for_backward(x, hidden, weight, A, sigma, B, U, V)
        ctx.scaling = scaling
        return out.reshape(*x.shape[:-1], out.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        x, hidden, weight, A, sigma, B, U, V = ctx.saved_tensors
        r = A.shape[0]
        core = _core(sigma, ctx.scaling)
        flat = grad.reshape(-1, grad.shape[-1])
        adapter_grad = flat.to(B.dtype)
        grad_wide = adapter_grad @ _stacked(B, U, 1)
        grad_narrow = _through_core(grad_wide, core.mT if core.ndim == 2 else core, r).to(A.dtype)
        grad_x = grad_A = grad_sigma = grad_B = None
        tokens = None
        if ctx.needs_input_grad[0]:
            rows = _stacked(A, V, 0)
            if weight is None:
                grad_x = (grad_narrow @ rows).to(x.dtype)
            elif flat.dtype == A.dtype:
                grad_x = (flat @ weight).addmm_(grad_narrow, rows)
            else:
                grad_x = (grad_narrow @ rows).to(weight.dtype).addmm_(flat, weight).to(x.dtype)
            grad_x = grad_x.reshape(x.shape)
        if ctx.needs_input_grad[4]:
            tokens = x.reshape(-1, x.shape[-1]).to(A.dtype)
            grad_A = grad_narrow[:, :r].mT @ tokens
        if ctx.needs_input_grad[5]:
            grad_hidden = grad_wide[:, :r].to(core.dtype)
            outer = hidden.to(core.dtype)
            grad_core = (grad_hidden * outer).sum(0) if sigma.ndim == 1 else grad_hidden.mT @ outer
            grad_sigma = (ctx.scaling * grad_core).to(sigma.dtype)
        if ctx.needs_input_grad[6]:
            grad_B = adapter_grad.mT @ _through_core(hidden, core, r).to(B.dtype)
        grad_result = grad if weight is None else None
        return grad_x, grad_result, None, None, grad_A, grad_sigma, grad_B, None, None, None


def _stacked(trained: Tensor, frozen: Tensor | None, dim: int) -> Tensor:
    return trained if frozen is None else torch.cat([trained, frozen.to(trained.dtype)], dim)


def _core(sigma: Tensor, scaling: float) -> Tensor:
    """Scaling times sigma in float32 or wider, even where a trainer has cast the adapter to 16 bits."""
    return sigma.to(torch.promote_types(sigma.dtype, torch.float32)) * scaling


def _through_core(activation: Tensor, core: Tensor, r: int) -> Tensor:
    """(tokens, r + q): the first r columns times the core; the others, which are the tail's, negated."""
    if core.ndim == 1:
        factor = (
            core if activation.shape[1] == r else torch.cat([core, core.new_full((activation.shape[1] - r,), -1.0)])
        )
        return activation * factor
    through = activation[:, :r].to(core.dtype) @ core.mT
    return through if activation.shape[1] == r else torch.cat([through, -activation[:, r:].to(core.dtype)], 1)
