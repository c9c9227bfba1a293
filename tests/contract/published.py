"""Published parameter counts with their sources, and the settings that reproduce them without loading weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

QV = ["query", "value"]
COMMONSENSE = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
EVERY_DEBERTA_LAYER = r"deberta\.encoder\.layer\.\d+\..*(query_proj|key_proj|value_proj|dense)"
_LOG = "log files of juyongjiang/KaSA"
_LORA = "LoRA, arXiv 2106.09685, table 2"
_NLG = "LoRA, arXiv 2106.09685, table 3"
_ADALORA = "AdaLoRA, arXiv 2303.10512, GLUE table"


@dataclass(frozen=True)
class Published:
    """A published count.

    Attributes:
        method: name.
        model: name in `bases.REAL`.
        count: the exact number of parameters trained outside the head.
        printed: the number as printed in the source.
        source: where it is printed.
        settings: the settings of the method.
    """

    method: str
    model: str
    count: int
    printed: str
    source: str
    settings: dict[str, Any] = field(default_factory=dict)


PUBLISHED = (
    Published("kasa", "roberta-base", 295_104, "295104", _LOG, {"r": 8, "target_modules": QV}),
    Published("kasa", "roberta-large", 786_816, "786816", _LOG, {"r": 8, "target_modules": QV}),
    Published("kasa", "deberta-v3-base", 295_104, "295104", _LOG, {"r": 8}),
    Published("kasa", "llama2-7b", 56_103_936, "56103936", _LOG, {"r": 32, "target_modules": COMMONSENSE}),
    Published("kasa", "llama3-8b", 56_628_224, "56628224", _LOG, {"r": 32, "target_modules": COMMONSENSE}),
    Published("lora", "roberta-base", 294_912, "0.3M", _LORA, {"r": 8, "target_modules": QV}),
    Published("lora", "roberta-large", 786_432, "0.8M", _LORA, {"r": 8, "target_modules": QV}),
    Published("lora", "deberta-v3-base", 331_776, "0.33M", _ADALORA, {"r": 2, "target_modules": EVERY_DEBERTA_LAYER}),
    Published("bitfit", "roberta-base", 102_144, "0.1M", _LORA),
    Published("bitfit", "deberta-v3-base", 102_912, "0.1M", _ADALORA),
    Published("top-layers", "gpt2-medium", 25_192_448, "25.19M", _NLG, {"options": {"layers": 2}}),
    Published("houlsby", "roberta-large", 835_968, "0.8M", _LORA, {"r": 8}),
    Published("pfeiffer", "roberta-large", 811_392, "0.8M", _LORA, {"r": 16}),
    Published("houlsby", "deberta-v3-base", 313_536, "0.31M", _ADALORA, {"r": 8}),
    Published("pfeiffer", "deberta-v3-base", 304_320, "0.30M", _ADALORA, {"r": 16}),
    Published("adapterdrop", "roberta-base", 894_528, "0.9M", _LORA, {"r": 48}),
    Published(
        "adapterdrop", "roberta-base", 298_176, "0.3M", _LORA, {"r": 48, "options": {"drop": 8, "sampled": False}}
    ),
    Published("lin", "gpt2-medium", 368_784, "0.37M", _NLG, {"r": 6}),
    Published("lin", "gpt2-medium", 11_089_152, "11.09M", _NLG, {"r": 224}),
)
