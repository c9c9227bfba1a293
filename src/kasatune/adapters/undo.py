"""A model as it was before something that failed."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def unchanged_on_failure(model: nn.Module, written: Collection[str] = ()) -> Iterator[None]:
    """Put modules, parameters, hooks, flags and attributes of `model` back when the body raises.

    Args:
        model: any model.
        written: names of its parameters whose values the body may overwrite in place; they are copied beforehand.
    """
    modules = [(module, _copied(module.__dict__)) for module in model.modules()]
    parameters = [(p, p.data, p.requires_grad) for p in model.parameters()]
    values = {name: p.detach().clone() for name, p in model.named_parameters() if name in written}
    named = dict(model.named_parameters())
    try:
        yield
    except BaseException:
        for module, attributes in modules:
            module.__dict__.clear()
            module.__dict__.update(_copied(attributes))
        for parameter, data, flag in parameters:
            parameter.data = data
            parameter.requires_grad_(flag)
        with torch.no_grad():
            for name, value in values.items():
                named[name].copy_(value)
        raise


def _copied(attributes: dict[str, Any]) -> dict[str, Any]:
    """Attributes of a module; the containers among them are copied, what they hold is not."""
    return {key: value.copy() if isinstance(value, dict | set | list) else value for key, value in attributes.items()}
