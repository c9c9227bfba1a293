"""Fine-tuning methods: one module each, and a table that lists them without importing them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from kasatune.errors import InputError
from kasatune.methods.table import METHODS, MethodInfo, canonical_name, register_method

if TYPE_CHECKING:
    from kasatune.methods.shared.method import Method

__all__ = ["METHODS", "MethodInfo", "load", "register_method"]


def load(name: str) -> Method:
    """The method called `name`, or with this alias. Imports its module, and with it torch.

    Raises:
        InputError: no method has this name.
    """
    info = METHODS.get(canonical_name(name))
    if info is None:
        raise InputError(f"method {name!r} does not exist; choose one of: {', '.join(METHODS)}")
    return importlib.import_module(info.module).METHOD
