"""Speed of the mixtures of LoRA experts: training steps above the frozen model's, and generation at batch 1.

python -m benchmarks.mixtures [--quick]

All candidates take turns in one process, in a new order each turn, so that a drifting machine moves all of them alike.
N = 8, top-2 and r = 8 on all linear layers of the blocks; `moe-lora` is measured in both forms, as one stacked product
and as a loop over experts, and the faster one is what the others are compared with. --quick uses tiny shapes and has no
targets. Writes docs/results/benchmarks/mixtures.md.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import peft
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.harness import Row, arguments, publish
from kasatune.mixtures import MaloraConfig, MiloraMoeConfig, MoeLoraConfig, MorConfig
from kasatune.mixtures.moe_lora import MoeLoraLayer

MEANING = (
    "Times are processor time of the process, the minimum over the turns, in which all candidates run in a new order: "
    "other work on the machine adds to a time and never subtracts. The ratio is that of the minima. Lower is better; "
    "the target is its upper bound."
)
NOTES = (
    "Every step is forward and backward of one block on 1,024 tokens, the gradient of the inputs included; the time "
    "of the frozen model is subtracted. Generation reads a prompt of 32 tokens and writes 32 with a cache, in three "
    "blocks. N = 8, top-2, r = 8; milora-moe chooses one of the seven layers of a block."
)
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
STACKED, LOOP, FROZEN = "moe-lora, stacked", "moe-lora, loop", "frozen model"


@dataclass(frozen=True)
class Shape:
    """Blocks of a decoder.

    Attributes:
        hidden: width.
        inner: width of the feed-forward sublayer.
        heads: of the attention.
        groups: heads of keys and values.
        blocks: number of blocks.
    """

    hidden: int
    inner: int
    heads: int
    groups: int
    blocks: int

    def model(self) -> LlamaForCausalLM:
        """A random model of this shape, with few tokens."""
        torch.manual_seed(0)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=512,
                hidden_size=self.hidden,
                intermediate_size=self.inner,
                num_attention_heads=self.heads,
                num_key_value_heads=self.groups,
                num_hidden_layers=self.blocks,
                pad_token_id=0,
            )
        ).eval()


SHAPES = {
    "SmolLM2-135M": Shape(576, 1536, 9, 3, 1),
    "Llama, hidden 1024": Shape(1024, 2816, 16, 16, 1),
}
QUICK = {"tiny": Shape(64, 128, 4, 2, 2)}


class StackedLayer(MoeLoraLayer):
    """MoE-LoRA as one product for all experts."""

    def loops(self, config: Any, x: Tensor) -> bool:
        """False."""
        return False


class LoopLayer(MoeLoraLayer):
    """MoE-LoRA as a loop over experts, each with the tokens that chose it."""

    def loops(self, config: Any, x: Tensor) -> bool:
        """True."""
        return True


def candidates(shape: Shape) -> dict[str, Any]:
    """The frozen model and every mixture on it."""
    common = {"r": 8, "target_modules": TARGETS, "task_type": "CAUSAL_LM"}
    configs: dict[str, Any] = {
        STACKED: MoeLoraConfig(**common),
        LOOP: MoeLoraConfig(**common),
        "mor": MorConfig(**common),
        "malora": MaloraConfig(**common),
        "milora-moe": MiloraMoeConfig(**common),
    }
    models: dict[str, Any] = {FROZEN: shape.model().requires_grad_(False)}
    for name, config in configs.items():
        models[name] = peft.get_peft_model(shape.model(), config)
        with torch.no_grad():
            for key, parameter in models[name].named_parameters():
                if "mixture_B" in key:
                    parameter.normal_(std=0.01)
    for name, form in ((STACKED, StackedLayer), (LOOP, LoopLayer)):
        for module in models[name].modules():
            if isinstance(module, MoeLoraLayer):
                module.__class__ = form
    return models


def in_turn(work: Mapping[str, Callable[[], object]], turns: int) -> dict[str, list[float]]:
    """Processor seconds of each candidate in every turn, after one turn of warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    order = list(work)
    draw = random.Random(0)
    for turn in range(turns + 1):
        draw.shuffle(order)
        for name in order:
            start = time.process_time()
            work[name]()
            if turn:
                seconds[name].append(time.process_time() - start)
    return seconds


def training_step(model: Any, batch: Mapping[str, Tensor]) -> Callable[[], None]:
    """Forward and backward; the frozen model passes the gradient back to its inputs, as every adapter needs it."""
    model.train()
    embeddings = model.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_(True)

    def step() -> None:
        output = model(inputs_embeds=embeddings, attention_mask=batch["attention_mask"], labels=batch["labels"])
        output.loss.backward()
        model.zero_grad(set_to_none=True)
        embeddings.grad = None

    return step


def training_rows(name: str, shape: Shape, turns: int, tokens: int, *, targets: bool) -> list[Row]:
    """The time of a step above the frozen model's, against the faster form of moe-lora."""
    ids = torch.randint(1, 512, (tokens // 256 or 1, min(tokens, 256)), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, : ids.shape[1] // 4] = -100
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    models = candidates(shape)
    seconds = in_turn({key: training_step(model, batch) for key, model in models.items()}, turns)
    frozen = min(seconds[FROZEN])
    above = {key: min(times) - frozen for key, times in seconds.items() if key != FROZEN}
    limits = {"malora": 0.7, "mor": 1.0} if targets else {}
    return compared(f"{name}: step above the frozen model", above, limits)


def generation_rows(name: str, shape: Shape, turns: int, new: int, *, targets: bool) -> list[Row]:
    """Seconds per token at batch 1, against the faster form of moe-lora; 1.2 times its tokens a second are wanted."""
    models = candidates(shape)
    ids = torch.randint(1, 512, (1, 32), generator=torch.Generator().manual_seed(1))
    options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
    work = {}
    for key, model in models.items():
        model.eval()
        work[key] = lambda model=model: model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
    per_token = {key: min(times) / new for key, times in in_turn(work, turns).items()}
    return compared(f"{name}: one token, batch 1", per_token, {"milora-moe": 1 / 1.2} if targets else {})


def compared(what: str, seconds: Mapping[str, float], limits: Mapping[str, float]) -> list[Row]:
    """Every candidate against the faster form of moe-lora."""
    peer = min((STACKED, LOOP), key=lambda key: seconds[key])
    return [
        Row(
            f"{what}, {key} / {peer}",
            f"{1000 * own:.2f} ms",
            f"{1000 * seconds[peer]:.2f} ms",
            own / seconds[peer],
            limits.get(key),
        )
        for key, own in seconds.items()
        if key != peer
    ]


def main() -> None:
    """Measure, and write the page."""
    quick = arguments("speed of the mixtures of LoRA experts").quick
    rows: list[Row] = []
    for name, shape in (QUICK if quick else SHAPES).items():
        rows += training_rows(name, shape, 2 if quick else 12, 64 if quick else 1024, targets=not quick)
        deep = Shape(shape.hidden, shape.inner, shape.heads, shape.groups, 2 if quick else 3)
        rows += generation_rows(name, deep, 2 if quick else 5, 8 if quick else 32, targets=not quick)
    publish(
        "mixtures",
        "Mixtures of LoRA experts: training steps and generation",
        "python -m benchmarks.mixtures",
        rows,
        NOTES,
        quick=quick,
        meaning=MEANING,
    )


if __name__ == "__main__":
    main()
