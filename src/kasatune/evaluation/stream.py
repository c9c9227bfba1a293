"""Stream one generated text piece by piece, greedily or sampled, with the same prompt and ends as `generate`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from kasatune.evaluation.batches import evaluation_mode
from kasatune.evaluation.generate import end_tokens, only_config

_INCOMPLETE = "\ufffd"  # what tokenizers write for the first bytes of a character


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        max_new_tokens: the most tokens of a text.
        temperature: divides the logits; 0 takes the most probable token.
        top_p: sample from the most probable tokens whose probabilities add up to this.
        top_k: sample from this many most probable tokens; 0 for all.
        seed: of the samples.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0


def stream_text(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompt: list[int],
    sampling: Sampling,
    write: Callable[[str], object],
    *,
    precision: str = "float32",
    end_of_turn: int | None = None,
) -> str:
    """Generate a text, without special tokens and surrounding blanks, and pass on each piece when it is known.

    Args:
        model: a causal language model, or a PEFT model around one.
        tokenizer: its tokenizer.
        prompt: tokens of the prompt.
        sampling: how tokens are chosen.
        write: receives the pieces; together they are the text that is returned.
        precision: "float32", "bfloat16" or "float16" (autocast).
        end_of_turn: a further token that ends a text, such as the chat template's.
    """
    ends = end_tokens(model, tokenizer, end_of_turn)
    sampled = sampling.temperature > 0
    options = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k} if sampled else {}
    config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=sampled,
        use_cache=True,
        eos_token_id=ends,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        **options,
    )
    pieces = _Pieces(tokenizer, set(ends), write)
    generate: Any = model.generate
    with evaluation_mode(model, precision) as device, only_config(model, config), torch.random.fork_rng():
        torch.manual_seed(sampling.seed)
        ids = torch.tensor([prompt], device=device)
        generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config, streamer=pieces)
    return pieces.text


class _Pieces(BaseStreamer):
    """Decodes tokens as they arrive and passes on what later tokens cannot change.

    Args:
        tokenizer: of the model.
        ends: tokens that end the text.
        write: receives the pieces.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: set[int], write: Callable[[str], object]) -> None:
        self.text = ""
        self._tokenizer, self._ends, self._write = tokenizer, ends, write
        self._tokens: list[int] = []
        self._seen_prompt = False

    def put(self, value: Tensor) -> None:
        """Receive the tokens of the prompt, which come first, or the next token."""
        if not self._seen_prompt:
            self._seen_prompt = True
            return
        self._tokens += [token for token in value.flatten().tolist() if token not in self._ends]
        self._pass_on(self._decoded().removesuffix(_INCOMPLETE).rstrip())

    def end(self) -> None:
        """Pass on the rest."""
        self._pass_on(self._decoded().rstrip())

    def _decoded(self) -> str:
        return str(self._tokenizer.decode(self._tokens, skip_special_tokens=True)).lstrip()

    def _pass_on(self, text: str) -> None:
        if len(text) > len(self.text) and text.startswith(self.text):
            piece = text[len(self.text) :]
            self.text = text
            self._write(piece)
