"""Where bottleneck adapters go: the modules of a transformer block, by architecture, and the place on each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, get_args

from torch import nn

from kasatune.errors import ModelError

Place = Literal["output", "norm", "input", "parallel"]
Kind = Literal["houlsby", "pfeiffer", "lin", "series", "series-inputs", "parallel"]
KINDS: tuple[str, ...] = get_args(Kind)


@dataclass(frozen=True)
class Block:
    """The parts of one transformer block, by their names within it.

    Attributes:
        blocks: ending of the name of the list that holds the blocks.
        attention: the last module of the attention sublayer before its residual connection.
        feed_forward: the last module of the feed-forward sublayer before its residual connection.
        wide: the projections into the feed-forward sublayer.
        narrow: the projection out of it.
        norm: the LayerNorm after the feed-forward residual connection; None where LayerNorms come first (pre-LN).
    """

    blocks: str
    attention: str
    feed_forward: str
    wide: tuple[str, ...]
    narrow: str
    norm: str | None = None


_BERT = Block(
    "encoder.layer",
    "attention.output.dropout",
    "output.dropout",
    ("intermediate.dense",),
    "output.dense",
    "output.LayerNorm",
)
_LLAMA = Block("layers", "self_attn.o_proj", "mlp.down_proj", ("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj")
_OPT = Block("decoder.layers", "self_attn.out_proj", "fc2", ("fc1",), "fc2")
_OPT_POST_LN = Block("decoder.layers", "self_attn.out_proj", "fc2", ("fc1",), "fc2", "final_layer_norm")

BLOCKS: Mapping[str, Block] = MappingProxyType(
    {
        **dict.fromkeys(("bert", "camembert", "deberta", "deberta-v2", "electra", "roberta", "xlm-roberta"), _BERT),
        **dict.fromkeys(("gemma", "llama", "mistral", "qwen2", "qwen3"), _LLAMA),
        "distilbert": Block(
            "transformer.layer",
            "attention.out_lin",
            "ffn.dropout",
            ("ffn.lin1",),
            "ffn.lin2",
            "output_layer_norm",
        ),
        "gpt2": Block("h", "attn.resid_dropout", "mlp.dropout", ("mlp.c_fc",), "mlp.c_proj"),
        "opt": _OPT,
    }
)


def find_places(model: nn.Module, kind: str) -> dict[str, Place]:
    """The place of the adapter on each adapted module, by module name, for all blocks of `model`.

    Args:
        model: a transformers model of an architecture in `BLOCKS`.
        kind: one of `KINDS`.

    Raises:
        ModelError: the architecture is not known, or a module is missing.
    """
    block = _block(model, kind)
    places: dict[str, Place] = {}
    for name in _block_names(model, block):
        places |= {f"{name}.{part}" if part else name: place for part, place in _within(block, kind).items()}
    if not places:
        raise ModelError(
            f"{type(model).__name__} has no blocks {block.blocks}.0, ...; set `places` of BottleneckConfig"
        )
    modules = {name for name, _ in model.named_modules()}
    missing = sorted(set(places) - modules)
    if missing:
        raise ModelError(
            f"{type(model).__name__} has no module {missing[0]}, where {kind} puts an adapter; "
            "set `places` of BottleneckConfig"
        )
    return places


def _within(block: Block, kind: str) -> dict[str, Place]:
    """The places in one block, by name within the block; "" is the block itself."""
    if kind == "houlsby":
        return {block.attention: "output", block.feed_forward: "output"}
    if kind == "pfeiffer":
        return {"": "output"} if block.norm is None else {block.norm: "norm"}
    if kind == "lin":
        return {"": "output"}
    if kind == "series":
        return {block.narrow: "output"}
    if kind == "series-inputs":
        return {**dict.fromkeys(block.wide, "input"), block.narrow: "output"}
    return {block.wide[-1]: "parallel", block.narrow: "parallel"}


def _block(model: nn.Module, kind: str) -> Block:
    config: Any = getattr(model, "config", None)
    model_type = str(getattr(config, "model_type", None))
    if model_type == "opt" and not config.do_layer_norm_before:
        return _OPT_POST_LN
    if model_type not in BLOCKS:
        raise ModelError(
            f"{kind} adapters: the model type {model_type!r} is not supported; supported are: "
            f"{', '.join(sorted(BLOCKS))}. Choose another method, or set `places` of BottleneckConfig."
        )
    return BLOCKS[model_type]


def _block_names(model: nn.Module, block: Block) -> Iterator[str]:
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and f".{name}".endswith(f".{block.blocks}"):
            yield from (f"{name}.{index}" for index in range(len(module)))


def block_index(name: str) -> int | None:
    """The number of the block that a module is or belongs to: the first number in its name; None outside blocks."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)
