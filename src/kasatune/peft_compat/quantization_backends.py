"""PEFT's quantization backends, which read the weights of quantized layers; before PEFT 0.20, backends that only read.

`resolve_quantization_backend(layer, **kwargs)` returns the backend of a quantized layer, and
`get_quantization_kwargs(model)` the settings of the model that it needs.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING or find_spec("peft.utils.quantization_utils") is not None:
    from peft.utils.quantization_utils import (
        ForwardOnlyQuantizationBackend,
        HqqBackend,
        QuantizationBackend,
        TorchaoBackend,
        get_quantization_kwargs,
        resolve_quantization_backend,
    )
else:
    from peft.utils.integrations import dequantize_bnb_weight

    class QuantizationBackend:
        """Reads the weight of a quantized layer. A merged weight cannot be written back, unlike with PEFT 0.20.

        Attributes:
            backend_name: name of the library, for messages.
        """

        supports_merge = False
        backend_name = ""

        def get_base_weight(self, base_layer: Any) -> Tensor:
            """W (out, in), dequantized."""
            return base_layer.weight.dequantize()

        def maybe_clone_base_result(self, x: Tensor) -> Tensor:
            """The output of the base layer, which may be modified in place."""
            return x

    class BitsandbytesBackend(QuantizationBackend):
        """Layers of bitsandbytes, of 4 or 8 bits."""

        def __init__(self, bits: int) -> None:
            self.backend_name = f"bnb {bits}bit"

        def get_base_weight(self, base_layer: Any) -> Tensor:
            """W (out, in), dequantized."""
            return dequantize_bnb_weight(base_layer.weight, state=getattr(base_layer, "state", None))

        def maybe_clone_base_result(self, x: Tensor) -> Tensor:
            """A copy: the backward pass of a 4-bit layer fails if its output is modified in place."""
            return x.clone()

    class HqqBackend(QuantizationBackend):
        """Layers of HQQ."""

        backend_name = "hqq"

        def get_base_weight(self, base_layer: Any) -> Tensor:
            """W (out, in), dequantized."""
            return base_layer.dequantize()

    class TorchaoBackend(QuantizationBackend):
        """Linear layers whose weight torchao quantized."""

        backend_name = "torchao"

        def __init__(self, get_apply_tensor_subclass: Any) -> None:
            self.get_apply_tensor_subclass = get_apply_tensor_subclass

    class ForwardOnlyQuantizationBackend(QuantizationBackend):
        """Layers that can be applied and not read: GPTQ, AWQ, AQLM, EETQ."""

        def __init__(self, backend_name: str = "") -> None:
            self.backend_name = backend_name

        def get_base_weight(self, base_layer: Any) -> Tensor:
            """Refuse.

            Raises:
                TypeError: always.
            """
            raise TypeError(f"a layer of {self.backend_name} cannot be dequantized")

    _FORWARD_ONLY = {"gptqmodel": "gptq", "auto_gptq": "gptq", "awq": "awq", "aqlm": "aqlm", "eetq": "eetq"}

    def resolve_quantization_backend(base_layer: nn.Module, **kwargs: Any) -> QuantizationBackend | None:
        """The backend of a quantized layer; None for other layers. The layer is recognized by its class."""
        for kind in type(base_layer).__mro__:
            library = kind.__module__.partition(".")[0]
            if library == "bitsandbytes" and kind.__name__ in ("Linear8bitLt", "Linear4bit"):
                return BitsandbytesBackend(8 if "8bit" in kind.__name__ else 4)
            if library == "hqq" and kind.__name__ == "HQQLinear":
                return HqqBackend()
            if library in _FORWARD_ONLY:
                return ForwardOnlyQuantizationBackend(_FORWARD_ONLY[library])
        if type(getattr(base_layer, "weight", None)).__module__.partition(".")[0] == "torchao":
            return TorchaoBackend(None)
        return None

    def get_quantization_kwargs(model: nn.Module) -> dict[str, Any]:
        """No settings: they serve to write a merged weight back."""
        return {}


__all__ = [
    "ForwardOnlyQuantizationBackend",
    "HqqBackend",
    "QuantizationBackend",
    "TorchaoBackend",
    "get_quantization_kwargs",
    "resolve_quantization_backend",
]
