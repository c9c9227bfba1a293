"""The prompt of a batch, in training and in generation, and the routing decisions that are kept with its cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kasatune.errors import InputError
from kasatune.mixtures.forward_pass import IGNORED, ForwardPass
from kasatune.wording import counted

_KEPT = "kasatune_decisions"
_PACKED = ("cu_seq_lens_q", "cu_seqlens", "seq_idx", "packed_seq_params")


class Decision(NamedTuple):
    """What the router of a block decided.

    Attributes:
        gates: (rows, experts), the weight of each expert; 0 where it is not selected.
        selected: for each expert, whether a row selects it; None in training, where every expert is computed.
    """

    gates: Tensor
    selected: list[bool] | None


class PromptPass(ForwardPass):
    """A forward pass in which the router of each block decides once for a prompt.

    The prompt of a row is what comes before its first learnt token, without padding; without labels, all its tokens.
    With a cache, the tokens of the first pass are the prompt: their decisions are kept on the cache object and used for
    every token that is written with it, so that they follow it between batches. The beams of a prompt share them.

    Attributes:
        decisions: the decisions of this pass, by block name.
        is_cached: whether the pass continues a text whose decisions are kept.
    """

    def _clear(self) -> None:
        super()._clear()
        self.decisions: dict[str, Decision] = {}
        self.is_cached = False
        self._adapter: str | None = None
        self._arguments: dict[str, Any] = {}
        self._labels: Tensor | None = None
        self._prompt: Tensor | None = None

    def _reset(self) -> None:
        super()._reset()
        self._written: tuple[int, Tensor | None] | None = None

    def begin(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], labels: Tensor | None) -> None:
        """Note the arguments of the model; what they mean is computed when the first router asks."""
        super().begin(model, args, kwargs, labels)
        self._arguments, self._labels = kwargs, labels
        cache: Any = kwargs.get("past_key_values")
        self.is_cached = hasattr(cache, "get_seq_length") and int(cache.get_seq_length()) > 0

    def end(self, kwargs: dict[str, Any], output: Any) -> None:
        """Keep the decisions on the cache of the text."""
        cache = kwargs.get("past_key_values")
        cache = getattr(output, "past_key_values", None) if cache is None else cache
        if self.decisions and hasattr(cache, "get_seq_length") and not self.is_cached:
            kept = {block: Decision(gates.detach(), selected) for block, (gates, selected) in self.decisions.items()}
            setattr(cache, _KEPT, (self._adapter, kept))
        self._arguments = {}

    def kept(self, adapter_name: str, block: str, rows: int) -> Decision:
        """The decision that was made for the prompt whose cache is used now.

        Raises:
            InputError: the cache belongs to no prompt that this adapter has read.
        """
        reader, decisions = getattr(self._arguments.get("past_key_values"), _KEPT, (None, {}))
        if reader != adapter_name or block not in decisions:
            raise InputError(
                f"past_key_values: the cache holds a text that the adapter {adapter_name!r} has not read, so there is "
                "no routing decision for it; start from an empty cache"
            )
        gates, selected = decisions[block]
        if len(gates) != rows:
            if rows % len(gates):
                raise InputError(
                    f"past_key_values: the batch has {counted(rows, 'row')}, and the cache was made for "
                    f"{counted(len(gates), 'prompt')}; start from an empty cache"
                )
            gates = gates.repeat_interleave(rows // len(gates), dim=0)  # beams of a prompt are neighbours
        return Decision(gates, selected)

    def keep(self, adapter_name: str, block: str, decision: Decision) -> None:
        """Use a decision for the rest of this pass."""
        self._adapter = adapter_name
        self.decisions[block] = decision

    @contextmanager
    def writing(self, prompt: Any, attention_mask: Any) -> Iterator[None]:
        """The context of a call of `generate`, whose input is the prompt also where no cache is used."""
        before = self._written
        if isinstance(prompt, Tensor):
            self._written = (prompt.shape[1], attention_mask if isinstance(attention_mask, Tensor) else None)
        try:
            yield
        finally:
            self._written = before

    def prompt(self, rows: int, tokens: int, device: torch.device, *, training: bool) -> Tensor:
        """Which tokens (rows, tokens) belong to the prompt of their row.

        The first token, which no loss predicts, always does; a row in training needs further ones.

        Raises:
            InputError: rows are packed, a row has no prompt in training, or the mask has another form.
        """
        if self._prompt is None or self._prompt.shape != (rows, tokens):
            self._prompt = self._find_prompt(rows, tokens, device, training=training)
        return self._prompt.to(device)

    def _find_prompt(self, rows: int, tokens: int, device: torch.device, *, training: bool) -> Tensor:
        mask = self.attention_mask
        written, written_mask = self._written or (None, None)
        if mask is None and self._arguments.get("attention_mask") is not None:
            mask = written_mask
            if mask is None:
                raise InputError(
                    "attention_mask: a router of prompts needs a mask (rows, tokens) to leave out padding; got one of "
                    "another form"
                )
        if mask is not None and len(mask) != rows and rows % len(mask) == 0:
            mask = mask.repeat_interleave(rows // len(mask), dim=0)
        real = torch.ones(rows, tokens, dtype=torch.bool, device=device)
        if mask is not None:
            real[:, : mask.shape[1]] = mask[:, :tokens].to(device).bool()
        self._refuse_packed(real)
        prompt = real
        if self._labels is not None and self._labels.shape == real.shape:
            prompt = real & (self._labels.to(device).ne(IGNORED).cumsum(-1) == 0)
        elif written is not None:
            prompt = real & (torch.arange(tokens, device=device) < written)
        empty = (~prompt.any(-1) & real.any(-1)).nonzero().flatten().tolist() if training else []
        if empty:
            raise InputError(
                f"labels: row {empty[0]} of the batch has no prompt: its first token is in the loss already. A router "
                "of prompts needs one; set the labels of the prompt to -100, or use a mixture that routes tokens"
            )
        return prompt | (real & (real.cumsum(-1) == 1))

    def _refuse_packed(self, real: Tensor) -> None:
        positions = self._arguments.get("position_ids")
        packed = any(self._arguments.get(name) is not None for name in _PACKED)
        if isinstance(positions, Tensor) and positions.shape[-1:] == real.shape[-1:] and positions.ndim == 2:
            follows = (positions[:, 1:] <= positions[:, :-1]).to(real.device) & real[:, 1:] & real[:, :-1]
            packed = packed or bool(follows.any())
        if packed:
            raise InputError(
                "packed rows: a router of prompts decides once for a row, and these hold several texts; train without "
                "packing, or use a mixture that routes tokens"
            )
