"""Text written by a causal language model: greedy or beam search over batches, one answer a prompt."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, NoRepeatNGramLogitsProcessor, PreTrainedTokenizerBase

from kasatune.data.prompt_completion import prompt_tokens
from kasatune.errors import InputError, ModelError
from kasatune.evaluation.scoring import autocast
from kasatune.io.progress import progress_counter

_OWN = ("transformers_version", "_from_model_config", "use_cache", "bos_token_id", "eos_token_id", "pad_token_id")


class Decoding(Protocol):
    """The recipe's section `generation`, or anything with its attributes."""

    @property
    def max_new_tokens(self) -> int:
        """The most tokens to write."""
        ...

    @property
    def num_beams(self) -> int:
        """Beams of the search; 1 is greedy."""
        ...

    @property
    def length_penalty(self) -> float:
        """The exponent p of the length in a beam's score."""
        ...

    @property
    def no_repeat_ngram_size(self) -> int:
        """The n of the n-grams that may be written once; 0 for no limit."""
        ...


def generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str] | Sequence[list[int]],
    settings: Decoding,
    batch_size: int,
    *,
    max_length: int,
    precision: str = "float32",
) -> list[str]:
    """What the model writes after each prompt, without special tokens and the blanks around it.

    argmax over beams of sum log p / length^p, no token ever drawn. Prompts of like length share a batch, padded on the
    left, hidden by the attention mask and left out of the positions; the answers are in the order of the prompts. An
    n-gram may be written once, whatever stands in the prompt (as in microsoft/LoRA's gpt2_beam.py; transformers' own
    limit counts the prompt too). The model's generation_config has no say but for its end-of-text tokens.

    A warning tells how many texts the model did not end within `settings.max_new_tokens`.

    Args:
        model: put into evaluation mode, and back afterwards.
        tokenizer: its own, with end-of-text and padding token.
        prompts: whole, as the model was trained to read them; texts, or their tokens.
        settings: of the search.
        batch_size: prompts at a time; the beams multiply it.
        max_length: tokens of the longest prompt; a longer one loses its beginning.
        precision: "float32", "bfloat16" or "float16" (autocast).

    Raises:
        ModelError: the model has too few positions for `settings.max_new_tokens`.
        InputError: a prompt has no token.
    """
    tokens = cut_prompts(model, tokenizer, prompts, settings, max_length)
    order = sorted(range(len(tokens)), key=lambda index: -len(tokens[index]))
    answers = [""] * len(tokens)
    config = generation_config(model, tokenizer, settings)
    device, ends, cut = next(model.parameters()).device, set(config.eos_token_id or ()), 0
    was_training = model.training
    model.eval()
    try:
        with (
            torch.no_grad(),
            autocast(device, precision),
            _alone(model, config),
            progress_counter("writing", len(order)) as advance,
        ):
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                batch = _left_padded([tokens[index] for index in rows], int(config.pad_token_id or 0), device)
                for index, written in zip(rows, _written(model, batch, config, settings), strict=True):
                    cut += ends.isdisjoint(written)
                    answers[index] = str(tokenizer.decode(written, skip_special_tokens=True)).strip()
                    advance()
    finally:
        model.train(was_training)
    if cut:
        warnings.warn(
            f"{cut} of {len(answers)} texts were cut at generation.max_new_tokens ({settings.max_new_tokens}) before"
            " the model ended them",
            stacklevel=2,
        )
    return answers


def cut_prompts(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str] | Sequence[list[int]],
    settings: Decoding,
    max_length: int,
) -> list[list[int]]:
    """The tokens of each prompt, its beginning cut where it is longer than `max_length` or the model has room for.

    Raises:
        ModelError: the model has too few positions for `settings.max_new_tokens`.
        InputError: a prompt has no token.
    """
    config: Any = model.config
    positions = getattr(config, "max_position_embeddings", None)
    room = positions - settings.max_new_tokens if isinstance(positions, int) and positions > 0 else max_length
    if room < 1:
        raise ModelError(
            f"generation.max_new_tokens: {settings.max_new_tokens} received; the model has {positions} positions for"
            " prompt and answer together; lower it"
        )
    tokens = prompt_tokens(tokenizer, prompts)
    empty = next((number for number, row in enumerate(tokens, start=1) if not row), None)
    if empty is not None:
        raise InputError(f"prompt {empty} is empty: a model needs a token to go on from")
    return [row[-min(room, max_length) :] for row in tokens]


def generation_config(model: nn.Module, tokenizer: PreTrainedTokenizerBase, settings: Decoding) -> GenerationConfig:
    """Every setting of the search; the end-of-text tokens are the tokenizer's and the model's own."""
    own = getattr(model, "generation_config", None)
    ends = getattr(own, "eos_token_id", None)
    listed = ends if isinstance(ends, list) else [ends]
    return GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        num_beams=settings.num_beams,
        length_penalty=settings.length_penalty,
        early_stopping=False,
        do_sample=False,
        use_cache=True,
        eos_token_id=sorted({int(token) for token in [tokenizer.eos_token_id, *listed] if token is not None}),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )


def unused_settings(model: nn.Module) -> dict[str, Any]:
    """What the model's own generation_config sets beside its special tokens, and decoding here does not heed."""
    own = getattr(model, "generation_config", None)
    if own is None:
        return {}
    plain = GenerationConfig().to_dict()
    return {
        name: value
        for name, value in own.to_dict().items()
        if name not in _OWN and value is not None and value != plain.get(name) and value is not False
    }


class _OnceWritten(LogitsProcessor):
    """transformers' limit on n-grams, over what was written alone."""

    def __init__(self, size: int, prompt_length: int) -> None:
        self._limit = NoRepeatNGramLogitsProcessor(size)
        self._prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return self._limit(input_ids[:, self._prompt_length :], scores)  # type: ignore[arg-type,return-value]


def _written(model: Any, batch: dict[str, Tensor], config: GenerationConfig, settings: Decoding) -> list[list[int]]:
    length = batch["input_ids"].shape[1]
    size = settings.no_repeat_ngram_size
    limits = [_OnceWritten(size, length)] if size else []
    found = model.generate(**batch, generation_config=config, logits_processor=limits)
    return found[:, length:].tolist()


def _left_padded(rows: list[list[int]], padding: int, device: torch.device) -> dict[str, Tensor]:
    longest = max(map(len, rows))
    ids = [[padding] * (longest - len(row)) + row for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}


@contextmanager
def _alone(model: nn.Module, config: GenerationConfig) -> Iterator[None]:
    """Have every module that holds a generation_config hold `config`: transformers takes from it what is not set."""
    holders: list[Any] = [module for module in model.modules() if "generation_config" in vars(module)]
    before = [holder.generation_config for holder in holders]
    try:
        for holder in holders:
            holder.generation_config = config
        yield
    finally:
        for holder, own in zip(holders, before, strict=True):
            holder.generation_config = own
