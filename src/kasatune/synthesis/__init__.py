"""Generate instruction data with a teacher model: show it seeds, check its answers, drop near copies."""

from __future__ import annotations
