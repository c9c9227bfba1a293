"""Fine-tuning methods: one file each, and a table that lists them without importing them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from kasatune.errors import InputError
from kasatune.methods.table import METHODS, MethodInfo

if TYPE_CHECKING:
    from kasatune.methods.base import Method

__all__ = ["METHODS", "MethodInfo", "load"]


def load(name: str) -> Method:
    """The method called `name`; imports its module, and with it torch.

    Raises:
        InputError: no method has this name.
    """
    if name not in METHODS:
        raise InputError(f"method {name!r} does not exist; choose one of: {', '.join(METHODS)}")
    return importlib.import_module(METHODS[name].module).METHOD
