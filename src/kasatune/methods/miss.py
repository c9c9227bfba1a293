from __future__ import annotations

from typing import Any

from peft import MissConfig, PeftConfig

from kasatune.methods.shared.method import MethodSettings
from kasatune.methods.shared.peft_adapter import AdapterMethod
from kasatune.methods.table import METHODS


class Miss(AdapterMethod):
    """y = W x + D^T sum_g drop(x)_g, x cut into consecutive groups of r features, zero padded; D (r, out) starts at 0.

    The update is not scaled: `alpha` is not used.

    Source: Kang, Yin, arXiv 2409.15371; computed by PEFT.
    """

    info = METHODS["miss"]

    def config(self, settings: MethodSettings, targets: list[str] | str | None, common: dict[str, Any]) -> PeftConfig:
        """PEFT's MissConfig in its default form."""
        return MissConfig(r=settings.r, miss_dropout=settings.dropout, target_modules=targets, **common)


METHOD = Miss()
