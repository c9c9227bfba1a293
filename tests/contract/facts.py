"""Expected facts about each method: how many parameters it trains, and on which tiny bases it is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

R = 2
ALPHA = 4
RANKS_FROM_WEIGHTS = ("sara",)


@dataclass(frozen=True)
class Shape:
    """The sizes of a model.

    Attributes:
        base: its model type.
        d: hidden size.
        f: inner size of the feed-forward part.
        L: number of blocks.
    """

    base: str
    d: int
    f: int
    L: int

    @property
    def targets(self) -> list[tuple[int, int]]:
        """(out, in) of the layers that "default" adapts: queries and values, or the fused layer of GPT-2."""
        return [(3 * self.d, self.d)] * self.L if self.base == "gpt2" else [(self.d, self.d)] * (2 * self.L)

    @property
    def norms(self) -> int:
        """Number of parameters in all normalizations."""
        if self.base == "llama":
            return (2 * self.L + 1) * self.d
        return 2 * (2 * self.L + 1) * self.d  # two a block; the last of GPT-2, the first of BERT

    @property
    def block(self) -> int:
        """Number of parameters in one block."""
        d, f = self.d, self.f
        if self.base == "llama":
            return 4 * d * d + 3 * d * f + 2 * d
        return 4 * (d * d + d) + (d * f + f) + (f * d + d) + 4 * d


def lora(s: Shape) -> int:
    """r (out + in) over the targets."""
    return sum(R * (out + inside) for out, inside in s.targets)


def rows(s: Shape) -> int:
    """Sum of out over the targets."""
    return sum(out for out, _ in s.targets)


def biases(s: Shape) -> int:
    """Biases of four or six layers and two norms in a block, plus one norm, plus the pooler of BERT."""
    if s.base == "gpt2":
        return s.L * (3 * s.d + s.d + s.f + s.d + 2 * s.d) + s.d
    return s.L * (5 * s.d + s.f + 2 * s.d) + (2 if s.base == "bert" else 1) * s.d


def moe_lora(s: Shape) -> int:
    """N r (in + out) + N in, N = 4."""
    return 4 * lora(s) + 4 * sum(inside for _, inside in s.targets)


def mor(s: Shape) -> int:
    """r (in + out) + N (r + out) + N in, N = 8."""
    return lora(s) + sum(8 * (R + out + inside) for out, inside in s.targets)


def malora(s: Shape) -> int:
    """r in + N rbar (r + out) + N in, N = 8, rbar = 3 for r = 2."""
    return sum(R * inside + 8 * 3 * (R + out) + 8 * inside for out, inside in s.targets)


def osf(s: Shape) -> int:
    """(k - floor(k / 2)) (out + in + 1) over the targets, k = min(out, in): half of the triplets are trained."""
    return sum((min(out, n) - min(out, n) // 2) * (out + n + 1) for out, n in s.targets)


def milora_moe(s: Shape) -> int:
    """LoRA, and d (n + 1) + 12 in each block, n its adapted layers."""
    return lora(s) + s.L * (s.d * (len(s.targets) // s.L + 1) + 12)


def bottleneck(s: Shape) -> int:
    """2 d r + r + d: two matrices and their biases."""
    return 2 * s.d * R + R + s.d


@dataclass(frozen=True)
class Facts:
    """Expected facts about one method.

    Attributes:
        trained: the number of trained parameters outside the head; None where it is every parameter of the model.
        refuses: tiny bases that it refuses, with a part of the message.
        options: its options in the tests.
        steps: optimizer steps after which every tensor has had a nonzero gradient.
    """

    trained: Callable[[Shape], int] | None
    refuses: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 3


FACTS: dict[str, Facts] = {
    "kasa": Facts(lambda s: lora(s) + R * len(s.targets)),
    "akasa": Facts(lambda s: lora(s) + R * len(s.targets)),
    "peft-kasa": Facts(lambda s: lora(s) + R * len(s.targets), {"gpt2": "Conv1D"}),
    "full": Facts(None),
    "top-layers": Facts(lambda s: s.block, options={"layers": 1}),
    "bitfit": Facts(biases, {"llama": "has none outside its head"}),
    "lora": Facts(lora),
    "rslora": Facts(lora),
    "lora-plus": Facts(lora),
    "dora": Facts(lambda s: lora(s) + rows(s)),
    "adalora": Facts(lambda s: sum(3 * (out + inside + 1) for out, inside in s.targets)),
    "pissa": Facts(lora),
    "milora": Facts(lora),
    "corda": Facts(lora),
    "olora": Facts(lora, {"gpt2": "Conv1D"}),
    "eva": Facts(lora),
    "lora-ga": Facts(lora),
    "lora-one": Facts(lora),
    "lora-null": Facts(lora),
    "oplora": Facts(lora, options={"k": 3}),
    "osf": Facts(osf, {"gpt2": "Conv1D"}),
    "vera": Facts(lambda s: rows(s) + R * len(s.targets)),
    "miss": Facts(lambda s: R * rows(s), {"gpt2": "Conv1D"}),
    "ia3": Facts(lambda s: s.L * ((3 if s.base == "gpt2" else 2) * s.d + s.f)),
    "prefix-tuning": Facts(lambda s: 4 * s.L * 2 * s.d, options={"virtual_tokens": 4}),
    "ln-tuning": Facts(lambda s: s.norms),
    "houlsby": Facts(lambda s: 2 * s.L * bottleneck(s)),
    "pfeiffer": Facts(lambda s: s.L * bottleneck(s)),
    "lin": Facts(lambda s: s.L * (bottleneck(s) + 2 * s.d)),
    "adapterdrop": Facts(lambda s: s.L * bottleneck(s), steps=8),
    "series-adapter": Facts(lambda s: s.L * 2 * s.d * R),
    "parallel-adapter": Facts(lambda s: 2 * s.L * R * (s.d + s.f)),
    "dylora": Facts(lora, steps=6),
    "sara": Facts(lambda s: sum(out + inside + 1 for out, inside in s.targets), options={"share": 0.001}),
    "clora": Facts(lora, options={"k": 4}),
    "lora-mini": Facts(lambda s: 2 * R * 6 * len(s.targets), options={"inner": 6}),
    "lora-xs": Facts(lambda s: R * R * len(s.targets), options={"sigma": 0.1}),
    "moe-lora": Facts(moe_lora, options={"experts": 4}),
    "mor": Facts(mor),
    "malora": Facts(malora),
    "milora-moe": Facts(milora_moe, options={"activation_rate": 1.0}, steps=12),
    "ist": Facts(lora, options={"interval": 2}, steps=12),
}
