"""Training engines, one module each; `TaskInfo.engine` names the engine of a task."""

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
        "preference": "kasatune.training.engines.preference",
        "reward": "kasatune.training.engines.reward",
    }
)
"""The module of every engine, by name; the module defines `ENGINE`."""


def load_engine(name: EngineName) -> Engine:
    """Import the engine of this name, and the library that it needs.

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
