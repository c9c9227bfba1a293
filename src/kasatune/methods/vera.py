from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peft import PeftConfig, VeraConfig

from kasatune.methods.shared.method import MethodSettings
from kasatune.methods.shared.peft_adapter import AdapterMethod
from kasatune.methods.table import METHODS


class Vera(AdapterMethod):
    """y = W x + diag(b) B diag(d) A drop(x); b and d are trained, from b = 0 and d = `d_initial`; A and B are frozen.

    A and B are random (Kaiming), drawn from `projection_seed`, shared by all layers and saved with the adapter.

    Source: Kopiczko, Blankevoort, Asano, arXiv 2310.11454; computed by PEFT.
    """

    info = METHODS["vera"]

    def config(self, settings: MethodSettings, targets: list[str] | str | None, common: dict[str, Any]) -> PeftConfig:
        """PEFT's VeraConfig."""
        return VeraConfig(
            r=settings.r,
            vera_dropout=settings.dropout,
            d_initial=settings.options["d_initial"],
            projection_prng_key=settings.options["projection_seed"],
            save_projection=True,
            target_modules=targets,
            **common,
        )

    def stored_numbers(
        self, trained: int, shapes: Sequence[tuple[int, int]], settings: MethodSettings
    ) -> dict[str, int]:
        """See `Method.stored_numbers`; includes the random A and B, which are as large as the largest layer."""
        widest = max((out for out, _ in shapes), default=0) + max((inside for _, inside in shapes), default=0)
        return {self.folder: trained + settings.r * widest}


METHOD = Vera()
