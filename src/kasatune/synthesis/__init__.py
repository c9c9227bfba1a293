"""Instruction data from a teacher model: seeds shown, answers checked, near copies left out."""

from __future__ import annotations
