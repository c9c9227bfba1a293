"""LoRA-GA: LoRA that starts with singular vectors of the gradient, taken from the base."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from peft.tuners.lora import LoraGAConfig
from torch import Tensor, nn

from kasatune.methods.lora import ADAPTER_NAME, lora_layers
from kasatune.methods.shared.method import MethodSettings
from kasatune.methods.shared.starting_factors import CalibratedResidualLora, Factors, weight_gradients
from kasatune.methods.table import METHODS


class LoraGa(CalibratedResidualLora):
    """y = (W - s B0 A0) x + s B A drop(x), dL/dW = U S Vh: A0 = Vh_{1..r}, B0 = c U_{r+1..2r} S_{r+1..2r}.

    c = out^(1/4) / sqrt(`gamma`). The gradient is the mean over `samples` training rows, in batches of the run's size.
    The scale, and S in B0, are PEFT's; the authors' code has A0 = c Vh_{1..r} and B0 = c U_{r+1..2r}.

    Source: Wang, Yu, Li, arXiv 2407.05000; computed by PEFT.
    """

    info = METHODS["lora-ga"]

    def starting_factors(
        self, model: nn.Module, settings: MethodSettings, batches: Iterable[Mapping[str, Tensor]]
    ) -> dict[str, Factors]:
        """See `CalibratedResidualLora.starting_factors`."""
        layers = dict(lora_layers(model))
        gradients = weight_gradients(model, layers, self.info.name, batches, settings.options["samples"])
        config = LoraGAConfig(stable_gamma=settings.options["gamma"])
        factors: dict[str, Factors] = {}
        for name, layer in layers.items():
            base = layer.get_base_layer()
            weights = (base.weight, layer.lora_A[ADAPTER_NAME].weight, layer.lora_B[ADAPTER_NAME].weight)
            before = [weight.data for weight in weights]
            if name in gradients:
                base._peft_loraga_grad = gradients[name].T if layer.fan_in_fan_out else gradients.pop(name)
                layer.lora_ga_init(ADAPTER_NAME, config)
            factors[name] = Factors(*(weight.data.float().cpu().clone() for weight in weights[1:]))
            for weight, data in zip(weights, before, strict=True):
                weight.data = data
        return factors


METHOD = LoraGa()
