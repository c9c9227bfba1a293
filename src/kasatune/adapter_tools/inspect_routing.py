"""Inspect the routers of a mixture of experts: the load of each expert and the entropy on given text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from kasatune.adapter_tools.resolve import find_source, load_base_model
from kasatune.adapter_tools.tokenizer import load_tokenizer, saved_tokenizer
from kasatune.adapters.adapter_files import read_header
from kasatune.errors import InputError
from kasatune.evaluation.known_tokens import require_known_tokens
from kasatune.io.library_noise import quiet
from kasatune.io.model_location import find_model
from kasatune.mixtures import record_routing
from kasatune.mixtures.config import MIXTURE_TYPES
from kasatune.weights.usable_positions import usable_positions


def inspect_routing(directory: Path, *texts: Path, base: str | None = None) -> dict[str, Any]:
    """What the routers of an adapter choose on text files, each of whose lines is read as one prompt.

    Args:
        directory: a run or adapter directory of a mixture.
        texts: files in UTF-8, such as one for each task; empty lines are skipped.
        base: name or folder of the base; None for that of the recipe or the adapter.

    Returns:
        {"adapter", "format", "text", "lines", "routers": [...]}: for each router its `name`, `load` (the share of each
        expert), `entropy` in nats and `items`, the number of routed tokens (weights, for a router of prompts). For
        several files {"adapter", "format", "texts": [...]}, each with `text`, `lines` and `routers`.

    Raises:
        InputError: the file holds no text, the adapter is no mixture, or there is no tokenizer.
        AdapterError: the adapter is damaged.
        ModelError: the base cannot be loaded.
    """
    source = find_source(directory, base)
    kind = read_header(source.adapter).config["peft_type"]
    if kind not in MIXTURE_TYPES:
        raise InputError(
            f"{directory}: --text shows the routers of a mixture of experts, and this adapter has the type {kind}; "
            "leave --text out"
        )
    lines = {text: _lines(text) for text in texts}
    with quiet():
        model: Any = PeftModel.from_pretrained(load_base_model(source), str(source.adapter)).eval()
        saved = saved_tokenizer(source.adapter, source.run)
        tokenizer = load_tokenizer(saved or find_model(str(source.base_name)), revision=source.revision)
    if tokenizer is None:
        raise InputError(f"{directory}: there is no tokenizer with the adapter or its base, so no text can be read")
    rows = {
        text: [tokenizer(line)["input_ids"][: usable_positions(model)] for line in own] for text, own in lines.items()
    }
    for own in rows.values():
        require_known_tokens(model, tokenizer, own)
    measured = [{"text": str(text), "lines": len(own), "routers": _routers(model, own)} for text, own in rows.items()]
    content = measured[0] if len(measured) == 1 else {"texts": measured}
    return {"adapter": str(source.adapter), "format": kind, **content}


def _lines(text: Path) -> list[str]:
    """The lines of a file that are not empty."""
    try:
        lines = [line for line in text.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as fault:
        raise InputError(f"--text {text}: cannot be read as text in UTF-8 ({fault})") from fault
    if not lines:
        raise InputError(f"--text {text}: the file holds no text")
    return lines


@torch.no_grad()
def _routers(model: Any, rows: Sequence[list[int]]) -> list[dict[str, Any]]:
    """The choices of all routers on rows of token ids."""
    device = next(model.parameters()).device
    with record_routing(model) as statistics:
        for row in rows:
            ids = torch.tensor([row], device=device)
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
    return [{"name": name, **entry} for name, entry in statistics.items()]
