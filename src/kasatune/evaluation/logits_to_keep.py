"""Compute logits only at chosen positions: hidden states are selected before the output layer of a language model."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from kasatune.evaluation.batches import FORWARD_FAULTS

_CAN_SELECT: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@contextmanager
def logits_to_keep(model: nn.Module, keep: Tensor) -> Generator[None]:
    """Inside this context, the logits of a forward pass are (1, n, vocabulary) instead of (rows, tokens, vocabulary).

    logits[0] = (head(h))[keep], computed as head(h[keep]), h the hidden states (rows, tokens, hidden). The selection is
    a hook on the input of the output layer: an adapter on that layer, and what the model does to its logits (soft caps,
    scaling), stay in effect.

    The first time, the result is compared with the model's own logits of a few tokens. A model for which it differs
    computes the logits of all positions, and a warning reports it once.

    Args:
        model: a causal language model, with or without adapters; not the wrapper of a distributed run.
        keep: bool (rows, tokens), n of them true.
    """
    if not _can_select(model):
        yield
        return
    with _selecting(_output_layer(model), keep):
        yield


def kept_logits(model: nn.Module, batch: Mapping[str, Tensor], keep: Tensor) -> Tensor:
    """The logits (n, vocabulary) at the positions `keep` of a batch without labels; see `logits_to_keep`."""
    with logits_to_keep(model, keep):
        logits = model(**batch).logits
    return logits[keep] if logits.shape[:2] == keep.shape else logits[0]


@contextmanager
def _selecting(head: Any, keep: Tensor) -> Generator[None]:
    # Positions instead of the mask: index_select has a backward pass without a sort.
    positions = keep.flatten().nonzero().squeeze(1)

    def select(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, *others = arguments
        if hidden.shape[:-1] != keep.shape:
            return arguments
        return (hidden.flatten(0, 1).index_select(0, positions.to(hidden.device)).unsqueeze(0), *others)

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


def _output_layer(model: nn.Module) -> nn.Module | None:
    """The layer that gives the logits, with an adapter around it if it has one; None if the model names no layer."""
    get: Any = getattr(model, "get_output_embeddings", None)
    head = None if get is None else get()
    return head if isinstance(head, nn.Module) else None


def _can_select(model: nn.Module) -> bool:
    if model not in _CAN_SELECT:
        reason = _reason_against(model)
        _CAN_SELECT[model] = reason is None
        if reason is not None:
            warnings.warn(
                f"{type(_bare(model)).__name__} computes the logits of all tokens, not only of those that the loss "
                f"counts: {reason}. Results are the same; a step takes more time and memory",
                stacklevel=4,
            )
    return _CAN_SELECT[model]


def _bare(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@torch.no_grad()
def _reason_against(model: Any) -> str | None:
    """Why selected hidden states do not give the model's own logits; None if they do, on two rows of three tokens."""
    head = _output_layer(model)
    if head is None:
        return "it has no separate output layer"
    device = next(model.parameters()).device
    vocabulary = getattr(_bare(model).config.get_text_config(), "vocab_size", None) or 1
    ids = torch.arange(6, device=device).remainder(vocabulary).view(2, 3)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    keep = torch.tensor([[False, True, False], [True, False, True]], device=device)
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        own = model(**batch).logits[keep]
        with _selecting(head, keep):
            selected = model(**batch).logits
    except FORWARD_FAULTS as fault:
        return f"selecting hidden states fails ({type(fault).__name__})"
    finally:
        for module, mode in modes:
            module.training = mode
    if selected.shape != (1, *own.shape):
        return "its output layer is not applied position by position"
    scale = own.float().abs().max().clamp(min=1e-6)
    error = float(((selected[0] - own).float().abs().max() / scale).nan_to_num())
    tolerance = 1e-4 if torch.finfo(own.dtype).bits >= 32 and not torch.is_autocast_enabled(device.type) else 3e-2
    return None if error <= tolerance else "selected hidden states give other logits"
