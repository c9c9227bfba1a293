"""The methods that a recipe can name, as plain data: nothing here imports torch, transformers or peft."""

from __future__ import annotations

from kasatune.methods.info import MethodInfo, Option
from kasatune.methods.rows import bottleneck, kasa, lora, own, vectors, whole

__all__ = ["METHODS", "MethodInfo", "Option"]

_FAMILIES = (kasa.ROWS, whole.ROWS, lora.ROWS, vectors.ROWS, bottleneck.ROWS, own.ROWS)

METHODS: dict[str, MethodInfo] = {row.name: row for rows in _FAMILIES for row in rows}
