"""Engines: how the weights of a run are trained, one module an engine, chosen by `TaskInfo.engine`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import MappingProxyType

from kasatune.data.tasks.task_info import EngineName
from kasatune.errors import InputError
from kasatune.training.engines.engine import Engine

ENGINES: Mapping[EngineName, str] = MappingProxyType(
    {
        "trainer": "kasatune.training.engines.trainer",
        "sft": "kasatune.training.engines.sft",
    }
)
"""The module of every engine, which holds it as `ENGINE`."""


def load_engine(name: EngineName) -> Engine:
    """The engine of that name; its module, and the library that it needs, is imported now.

    Raises:
        InputError: no engine has this name.
        MissingExtraError: the library is not installed.
    """
    if name not in ENGINES:
        raise InputError(
            f"engine {name!r} does not exist; TaskInfo.engine is one of: {', '.join(ENGINES)}; a new engine needs a row"
            " in kasatune.training.engines.ENGINES"
        )
    return importlib.import_module(ENGINES[name]).ENGINE
