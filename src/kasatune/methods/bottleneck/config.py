"""`BottleneckConfig`: the PEFT configuration of a bottleneck adapter."""

from __future__ import annotations

from dataclasses import dataclass, field

from peft.config import PeftConfig
from peft.utils import PeftType
from transformers.activations import ACT2FN

from kasatune.errors import InputError
from kasatune.kasa.unknown_settings import refuse_unknown_settings
from kasatune.methods.bottleneck.adapter import Shape
from kasatune.methods.bottleneck.places import KINDS

_NOT_LORA = {
    "lora_alpha": "the update is scaled by scaling",
    "lora_dropout": "the dropout is adapter_dropout",
    "bias": "biases of the base stay frozen, and adapter_bias gives the adapter its own",
    "exclude_modules": "name the modules to adapt in places",
    "layers_to_transform": "first_block leaves out the first blocks, and places names single modules",
    "layers_pattern": "places names single modules",
}


@refuse_unknown_settings(_NOT_LORA)
@dataclass
class BottleneckConfig(PeftConfig):
    """h <- h + s g(h), g(h) = W_up f(W_down h + b_down) + b_up, between the sublayers of a transformer.

    Args:
        r: width of the bottleneck.
        kind: where the adapters go. "houlsby": on the outputs of both sublayers, before the residual connection.
            "pfeiffer": once a block, after the feed-forward sublayer: between its residual connection and LayerNorm,
            reading the LayerNorm's output, or on the block's output where LayerNorms come first. "lin": on the
            block's output. "series": on the output of the projection out of the feed-forward sublayer;
            "series-inputs": on the inputs of its other projections too. "parallel": parallel to the last projection
            into the feed-forward sublayer and the one out of it.
        activation: f, a name that transformers knows.
        layer_norm: g starts with its own LayerNorm.
        adapter_bias: g has b_down and b_up.
        adapter_dropout: dropout probability on the input of W_down.
        scaling: s.
        skip_blocks: number of first blocks whose adapters are inactive outside training (AdapterDrop).
        first_block: the first block that gets adapters.
        places: module name to "output", "norm", "input" or "parallel". Computed from `kind` and the architecture when
            the adapter is created; set it yourself for an architecture that is not known.
        target_modules: required by PEFT; must be None, since `places` determines what is adapted.
        modules_to_save: modules that are trained and saved completely, such as a new head.

    Raises:
        InputError: a value is out of range.
        UnknownSettingError: a setting of this name does not exist.
    """

    r: int = field(default=64)
    kind: str = field(default="houlsby")
    activation: str = field(default="relu")
    layer_norm: bool = field(default=False)
    adapter_bias: bool = field(default=True)
    adapter_dropout: float = field(default=0.0)
    scaling: float = field(default=1.0)
    skip_blocks: int = field(default=0)
    first_block: int = field(default=0)
    places: dict[str, str] | None = field(default=None)
    target_modules: None = field(default=None)
    modules_to_save: list[str] | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType("BOTTLENECK")
        faults = []
        if not isinstance(self.r, int) or self.r < 1:
            faults.append(f"r must be a whole number of at least 1, got {self.r!r}")
        if self.kind not in KINDS:
            faults.append(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.activation not in ACT2FN:
            faults.append(
                f"activation must be one that transformers knows, such as relu or gelu, got {self.activation!r}"
            )
        if not 0 <= self.adapter_dropout < 1:
            faults.append(f"adapter_dropout must be at least 0 and below 1, got {self.adapter_dropout!r}")
        if self.target_modules is not None:
            faults.append("target_modules is not used; give places, such as {'model.layers.0.mlp.down_proj': 'output'}")
        if faults:
            raise InputError("BottleneckConfig: " + "; ".join(faults))

    @property
    def shape(self) -> Shape:
        """Width, activation, LayerNorm, biases and dropout of each adapter."""
        return Shape(self.r, self.activation, self.layer_norm, self.adapter_bias, self.adapter_dropout)
