"""Generate text with a causal language model: greedy or beam search over batches, one text for each prompt."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, NoRepeatNGramLogitsProcessor, PreTrainedTokenizerBase

from kasatune.data.collate import pad
from kasatune.data.prompt_completion import prompt_tokens
from kasatune.errors import InputError, ModelError
from kasatune.evaluation.batches import batches_by_length, evaluation_mode
from kasatune.evaluation.known_tokens import require_known_tokens
from kasatune.io.progress import progress_counter
from kasatune.weights.usable_positions import usable_positions
from kasatune.wording import agree, counted

_SET_HERE = ("transformers_version", "_from_model_config", "use_cache", "bos_token_id", "eos_token_id", "pad_token_id")


class Decoding(Protocol):
    """The recipe's section `generation`, or anything with its attributes."""

    @property
    def max_new_tokens(self) -> int:
        """The most tokens to generate."""
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
        """The n of the n-grams that may be generated once; 0 for no limit."""
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
    end_of_turn: int | None = None,
) -> list[str]:
    """Generate one text for each prompt, without special tokens and surrounding blanks, in the order of the prompts.

    Deterministic: argmax over beams of sum log p / length^p; no token is sampled. Prompts of similar length share a
    batch, padded on the left; the padding is hidden by the attention mask and does not count as positions. An n-gram
    may be generated once, whatever the prompt contains (as in microsoft/LoRA's gpt2_beam.py; transformers' own limit
    counts the prompt too). The model's generation_config is ignored except for its end-of-text tokens.

    A warning says how many texts reached `settings.max_new_tokens` before the model ended them.

    Args:
        model: its training mode is restored afterwards.
        tokenizer: tokenizer of the model, with end-of-text and padding token.
        prompts: complete, in the form that the model was trained on; texts, or their tokens.
        settings: settings of the search.
        batch_size: prompts in a batch; the beams multiply it.
        max_length: tokens of the longest prompt; a longer one loses its beginning.
        precision: "float32", "bfloat16" or "float16" (autocast).
        end_of_turn: a further token that ends a text, such as the chat template's.

    Raises:
        ModelError: the model has too few positions for `settings.max_new_tokens`, or no embedding for a token.
        InputError: a prompt has no tokens.
    """
    tokens = cut_prompts(model, tokenizer, prompts, settings, max_length)
    texts = [""] * len(tokens)
    config = generation_config(model, tokenizer, settings, end_of_turn)
    padding, eos_tokens, unfinished = int(config.pad_token_id or 0), set(config.eos_token_id or ()), 0
    with (
        evaluation_mode(model, precision) as device,
        only_config(model, config),
        progress_counter("writing", len(tokens)) as advance,
    ):
        for indices in batches_by_length([len(row) for row in tokens], batch_size):
            rows = [tokens[index] for index in indices]
            batch = {
                "input_ids": pad(rows, padding, "left").to(device),
                "attention_mask": pad([[1] * len(row) for row in rows], 0, "left").to(device),
            }
            for index, new_tokens in zip(indices, _new_tokens(model, batch, config, settings), strict=True):
                unfinished += eos_tokens.isdisjoint(new_tokens)
                written = list(takewhile(lambda token: token not in eos_tokens, new_tokens))
                texts[index] = str(tokenizer.decode(written, skip_special_tokens=True)).strip()
                advance()
    if unfinished:
        warnings.warn(
            f"{unfinished} of {counted(len(texts), 'text')} {agree(unfinished, 'was', 'were')} cut at "
            f"generation.max_new_tokens ({settings.max_new_tokens})"
            " before the model ended them",
            stacklevel=2,
        )
    return texts


def cut_prompts(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str] | Sequence[list[int]],
    settings: Decoding,
    max_length: int,
) -> list[list[int]]:
    """The tokens of each prompt, without its beginning if it exceeds `max_length` or the model's positions.

    Raises:
        ModelError: the model has too few positions for `settings.max_new_tokens`, or no embedding for a token.
        InputError: a prompt has no tokens.
    """
    positions = usable_positions(model)
    room = longest_prompt(model, settings, max_length)
    if room < 1:
        raise ModelError(
            f"generation.max_new_tokens: {settings.max_new_tokens} received; the model has "
            f"{positions} positions for prompt and answer together; lower it"
        )
    tokens = prompt_tokens(tokenizer, prompts)
    require_known_tokens(model, tokenizer, tokens)
    empty = next((number for number, row in enumerate(tokens, start=1) if not row), None)
    if empty is not None:
        raise InputError(f"prompt {empty} is empty: a model needs at least one token to continue")
    return [row[-room:] for row in tokens]


def longest_prompt(model: nn.Module, settings: Decoding, max_length: int) -> int:
    """The tokens of the longest prompt that is read in full; may be below 1 for too large a `max_new_tokens`."""
    positions = usable_positions(model)
    return max_length if positions is None else min(max_length, positions - settings.max_new_tokens)


def end_tokens(model: nn.Module, tokenizer: PreTrainedTokenizerBase, end_of_turn: int | None = None) -> list[int]:
    """The tokens that end a text: those of the tokenizer and the model, and the chat template's; ascending."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = [tokenizer.eos_token_id, end_of_turn, *(own if isinstance(own, list) else [own])]
    return sorted({int(token) for token in ends if token is not None})


def generation_config(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, settings: Decoding, end_of_turn: int | None = None
) -> GenerationConfig:
    """All settings of the search, with the tokens of `end_tokens`."""
    return GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        num_beams=settings.num_beams,
        length_penalty=settings.length_penalty,
        early_stopping=False,
        do_sample=False,
        use_cache=True,
        eos_token_id=end_tokens(model, tokenizer, end_of_turn),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )


def unused_settings(model: nn.Module) -> dict[str, Any]:
    """Settings of the model's own generation_config, other than its special tokens, that decoding here ignores."""
    model_config = getattr(model, "generation_config", None)
    if model_config is None:
        return {}
    defaults = GenerationConfig().to_dict()
    return {
        name: value
        for name, value in model_config.to_dict().items()
        if name not in _SET_HERE and value is not None and value != defaults.get(name) and value is not False
    }


class _NoRepeatInNewText(LogitsProcessor):
    """transformers' limit on repeated n-grams, applied to the generated tokens only."""

    def __init__(self, size: int, prompt_length: int) -> None:
        self._limit = NoRepeatNGramLogitsProcessor(size)
        self._prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return self._limit(input_ids[:, self._prompt_length :], scores)  # pyright: ignore[reportArgumentType]


def _new_tokens(model: Any, batch: dict[str, Tensor], config: GenerationConfig, settings: Decoding) -> list[list[int]]:
    length = batch["input_ids"].shape[1]
    size = settings.no_repeat_ngram_size
    processors = [_NoRepeatInNewText(size, length)] if size else []
    sequences = model.generate(**batch, generation_config=config, logits_processor=processors)
    return sequences[:, length:].tolist()


@contextmanager
def only_config(model: nn.Module, config: GenerationConfig) -> Generator[None]:
    """Replace the generation_config of every module by `config`: transformers fills in unset values from it."""
    holders: list[Any] = [module for module in model.modules() if "generation_config" in vars(module)]
    before = [holder.generation_config for holder in holders]
    try:
        for holder in holders:
            holder.generation_config = config
        yield
    finally:
        for holder, own in zip(holders, before, strict=True):
            holder.generation_config = own
