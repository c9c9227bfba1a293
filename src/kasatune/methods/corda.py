from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda
from torch import Tensor, nn

from kasatune.errors import DataError
from kasatune.methods.lora import ADAPTER_NAME, lora_layers
from kasatune.methods.shared.method import MethodSettings
from kasatune.methods.shared.residual_lora import ResidualLora, remember_initial_factors
from kasatune.methods.table import METHODS


class Corda(ResidualLora):
    """W C = U S Vh, C the covariance of the layer's inputs; B0 = U sqrt(S / s), A0 = sqrt(S / s) Vh C^-1, r of them.

    "ipm" uses the r largest, which matter most for the training data, "kpm" the r smallest. C is computed from
    `samples` training rows, in an order that the recipe's seed determines, one row at a time without padding, each
    scaled by its largest activation, as PEFT does. The paper uses 256 rows of 2,048 tokens; short rows give a C of low
    rank, which PEFT damps.

    Source: Yang et al., arXiv 2406.05223; computed by PEFT.
    """

    info = METHODS["corda"]

    def prepare(self, model: nn.Module, settings: MethodSettings, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """Compute the covariances, and write the decomposition into A, B and the weight.

        Raises:
            DataError: there are no training rows.
        """
        rows = list(islice(_rows(batches), settings.options["samples"]))
        if not rows:
            raise DataError(
                "method 'corda' computes covariances from training rows, and there are none; give training rows"
            )
        layers: dict[str, Any] = dict(lora_layers(model))
        config = LoraConfig(
            r=settings.r,
            target_modules=[f"{name}.base_layer" for name in layers],
            init_lora_weights="corda",
            corda_config=CordaConfig(corda_method=settings.options["components"], verbose=False),
        )

        def run() -> None:
            with torch.no_grad():
                for row in rows:
                    model(**row)

        preprocess_corda(model, config, run_model=run)
        with torch.no_grad():
            for layer in layers.values():
                trained = [layer.lora_A[ADAPTER_NAME].weight, layer.lora_B[ADAPTER_NAME].weight]
                layer.corda_init(ADAPTER_NAME, True)
                for parameter in trained:
                    parameter.data = parameter.data.to(layer.get_base_layer().weight.device).contiguous()
        remember_initial_factors(model)


def _rows(batches: Iterable[Mapping[str, Tensor]]) -> Iterator[dict[str, Any]]:
    """The inputs of one row at a time, (1, tokens), without labels or padding."""
    for batch in batches:
        for index in range(len(batch["input_ids"])):
            tokens = batch["attention_mask"][index].bool()
            yield {
                name: value[index][tokens][None]
                for name, value in batch.items()
                if name != "labels" and value.shape[:2] == batch["attention_mask"].shape
            }


METHOD = Corda()
