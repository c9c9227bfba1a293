"""The methods that a recipe can name, as plain data: nothing here imports torch, transformers or peft."""

from __future__ import annotations

from kasatune.methods.info import MethodInfo, Option
from kasatune.methods.rows import bottleneck, kasa, lora, whole

__all__ = ["METHODS", "MethodInfo", "Option"]

_ORDER = ("kasa", "peft-kasa", "lora", "full", "head", "bitfit")
_ROWS = {row.name: row for rows in (kasa.ROWS, whole.ROWS, lora.ROWS, bottleneck.ROWS) for row in rows}

METHODS: dict[str, MethodInfo] = {name: _ROWS[name] for name in (*_ORDER, *(n for n in _ROWS if n not in _ORDER))}
