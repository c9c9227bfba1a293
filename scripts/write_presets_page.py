"""Write docs/presets.md: what the presets for well-known models train and which GPU holds them, by `kasatune plan`.

`make presets` runs it; tests/recipes/test_presets.py fails when the page is out of date. The models are not downloaded:
their published configurations, as far as they decide sizes, are in this file.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from kasatune.io.library_noise import quiet
from kasatune.recipes.catalogue import find_recipe
from kasatune.recipes.schema import Recipe, load_recipe
from kasatune.training.plan import Plan, estimate_memory, make_plan

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "presets.md"
CARDS = (8, 16, 24, 80)
"""Memory of GPUs in GiB."""
USABLE = 0.9
"""Share of a GPU's memory that the estimate may take: it counts neither the context of CUDA nor fragmentation."""


def _llama(hidden: int, inner: int, layers: int, heads: int, keys: int, vocabulary: int, **more: Any) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "vocab_size": vocabulary,
        **more,
    }


def _smollm2(hidden: int, inner: int, layers: int, heads: int, keys: int) -> dict[str, Any]:
    return _llama(hidden, inner, layers, heads, keys, 49_152, max_position_embeddings=8192, tie_word_embeddings=True)


def _llama32(hidden: int, layers: int, heads: int, head: int) -> dict[str, Any]:
    more = {"head_dim": head, "max_position_embeddings": 131_072, "tie_word_embeddings": True}
    return _llama(hidden, 8192, layers, heads, 8, 128_256, **more)


def _qwen3(hidden: int, inner: int, layers: int, heads: int, *, tied: bool) -> dict[str, Any]:
    return {
        **_llama(hidden, inner, layers, heads, 8, 151_936, max_position_embeddings=40_960, tie_word_embeddings=tied),
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "head_dim": 128,
    }


_GEMMA_TEXT = {"model_type": "gemma3_text", "head_dim": 256, "tie_word_embeddings": True}

PUBLISHED: Mapping[str, dict[str, Any]] = {
    "akasa/smollm2-135m": _smollm2(576, 1536, 30, 9, 3),
    "akasa/smollm2-360m": _smollm2(960, 2560, 32, 15, 5),
    "akasa/smollm2-1.7b": _smollm2(2048, 8192, 24, 32, 32),
    "akasa/qwen3-0.6b": _qwen3(1024, 3072, 28, 16, tied=True),
    "akasa/qwen3-4b": _qwen3(2560, 9728, 36, 32, tied=True),
    "akasa/qwen3-8b": _qwen3(4096, 12_288, 36, 32, tied=False),
    "akasa/llama-3.2-1b": _llama32(2048, 16, 32, 64),
    "akasa/llama-3.2-3b": _llama32(3072, 28, 24, 128),
    "akasa/gemma-3-1b": {
        **_llama(1152, 6912, 26, 4, 1, 262_144, max_position_embeddings=32_768, sliding_window=512),
        **_GEMMA_TEXT,
        "architectures": ["Gemma3ForCausalLM"],
    },
    "akasa/gemma-3-4b": {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": {
            **_llama(2560, 10_240, 34, 8, 4, 262_208, max_position_embeddings=131_072, sliding_window=1024),
            **_GEMMA_TEXT,
        },
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "image_size": 896,
            "patch_size": 14,
            "vision_use_head": False,
        },
        "mm_tokens_per_image": 256,
    },
    "akasa/mistral-7b": {
        **_llama(4096, 14_336, 32, 32, 8, 32_768, max_position_embeddings=32_768, tie_word_embeddings=False),
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "sliding_window": None,
    },
}
"""The published configuration of the model of each preset, without what does not decide its size."""


@dataclass(frozen=True)
class Preset:
    """A preset with its plan.

    Attributes:
        name: name of the recipe.
        recipe: its model is a folder that holds the published configuration.
        model: name of the model in the recipe.
        plan: without the rows.
    """

    name: str
    recipe: Recipe
    model: str
    plan: Plan

    def memory(self, quantization: str, rows: int) -> int:
        """Estimated bytes of training with `rows` rows at a time."""
        values = self.recipe.model_dump()
        values["model"]["quantization"] = quantization
        values["training"]["gradient_accumulation"] = values["training"]["batch_size"] // rows
        changed = Recipe.model_validate(values)
        config = AutoConfig.from_pretrained(self.recipe.model.name)
        sizes = estimate_memory(
            changed, config, self.plan.layers, self.plan.model["parameters"], int(self.plan.trainable_parameters or 0)
        )
        assert sizes is not None
        return sizes["total"]

    def most_rows(self, quantization: str, card: int) -> int:
        """The most rows at a time, a power of two, that a GPU with `card` GiB holds; 0 if not even one."""
        most, rows = 0, 1
        while rows <= self.recipe.training.batch_size and self.memory(quantization, rows) <= USABLE * card * 2**30:
            most, rows = rows, 2 * rows
        return most

    def line(self) -> str:
        """The row of the page."""
        rows = self.recipe.training.batch_size // self.recipe.training.gradient_accumulation
        sizes = [f"{self.memory(kind, rows) / 2**30:.1f} GiB" for kind in ("none", "nf4")]
        fits = [f"{self.most_rows('none', card)} / {self.most_rows('nf4', card)}" for card in CARDS]
        parameters = f"{self.plan.model['parameters'] / 1e6:,.0f} M"
        trained = f"{int(self.plan.trainable_parameters or 0) / 1e6:,.1f} M"
        return f"| `{self.name}` | {parameters} | {trained} | {' | '.join([*sizes, *fits])} |"


def read_preset(name: str, folder: Path) -> Preset:
    """The plan of a preset on a model folder with the published configuration alone, written to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(PUBLISHED[name]), encoding="utf-8")
    model = load_recipe(find_recipe(name)).model.name
    recipe = load_recipe(find_recipe(name), [f"model.name={folder}"])
    with quiet():
        return Preset(name, recipe, model, make_plan(recipe, before_training=True))


def page(lines: list[str]) -> str:
    """The page with the row of each preset."""
    cards = [f"{card} GB" for card in CARDS]
    head = ["preset", "parameters", "trained", "16 bits", "4 bits", *cards]
    return f"""# Presets for well-known models

`kasatune list recipes` names them, `kasatune show akasa/qwen3-8b` prints one, and this trains it on your rows:

```bash
kasatune train akasa/qwen3-8b task.train=chats.jsonl task.validation=0.05
kasatune train akasa/qwen3-8b task.train=chats.jsonl task.validation=0.05 model.quantization=nf4   # 4 bits
kasatune train lora/qwen3-8b task.train=chats.jsonl task.validation=0.05                           # LoRA
```

Each preset exists twice, as `akasa/MODEL` and `lora/MODEL`, which differ in the method alone.
[aKaSA](concepts.md#akasa-the-update-keeps-out-of-what-the-activations-use) is the one to start with: on SmolLM2-135M it
learnt a task as well as LoRA did and forgot less ([measured](results/forgetting-smollm2.md)). Before the first step it
measures the activations of the base; `kasatune plan` says how long that takes.

The settings are those of "LoRA Without Regret" (Schulman et al., Thinking Machines, 2025): every linear layer,
alpha 32, batches of 32 rows, a learning rate ten times that of full fine-tuning. They were not tuned on these models,
and none of these runs was made here: `kasatune plan` checks the recipes against the published configurations.

Estimated memory of training, with rows of 1,024 tokens and gradient checkpointing: four rows at a time, and for each
size of GPU the most rows at a time, with 16 bits / 4 bits; 0 does not fit. Of a GPU's memory 90 % is counted.

| {" | ".join(head)} |
|---|{"---:|" * (len(head) - 1)}
{chr(10).join(lines)}

- Set the rows at a time with `training.gradient_accumulation`: 32 divided by them. The gradient does not depend on it.
- The estimate counts weights, gradients, optimizer state, activations and logits; the logits of a large vocabulary are
  a large part of it for small models. Shorter rows (`task.max_length`) take less.
- Llama and Gemma need a licence that is accepted on the hub, and `HF_TOKEN`.

`make presets` writes this page.
"""


def main() -> int:
    """Write the page."""
    with tempfile.TemporaryDirectory() as folder:
        lines = [read_preset(name, Path(folder) / name).line() for name in PUBLISHED]
    PAGE.write_text(page(lines), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
