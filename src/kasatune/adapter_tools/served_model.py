"""A model that answers requests of a server: generation with the decoding of kasatune, alone on the weights."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from kasatune.adapter_tools.chat import ChatModel
from kasatune.data.chat_template import answer_end
from kasatune.evaluation.batches import evaluation_mode
from kasatune.evaluation.generate import end_tokens, only_config
from kasatune.evaluation.known_tokens import require_known_tokens
from kasatune.weights.usable_positions import usable_positions


@dataclass(frozen=True)
class ServedModel:
    """A model in memory, with what the handlers of transformers read of one.

    Attributes:
        chat: the model, and how it was trained to be asked.
        is_base: whether the base answers in place of the tuned model.
        lock: held while a text is generated; the base and the tuned model share their weights.
    """

    chat: ChatModel
    is_base: bool
    lock: Any

    @property
    def device(self) -> Any:
        """The device of the inputs."""
        return next(self.parts()[0].parameters()).device

    @property
    def config(self) -> Any:
        """The configuration of the model."""
        return self.parts()[0].config

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of `GenerationConfig` for a request that has none: greedy, until a token that ends a text."""
        tokenizer = self.chat.tokenizer
        end = answer_end(tokenizer) if self.chat.is_chat else None
        return {
            "max_new_tokens": self.chat.max_new_tokens,
            "do_sample": False,
            "use_cache": True,
            "eos_token_id": end_tokens(self.parts()[0], tokenizer, None if end is None else end.token),
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
        }

    @property
    def generation_config(self) -> GenerationConfig:
        """`settings` as an object, which the handlers read."""
        return GenerationConfig(**self.settings)

    def generate(self, *, generation_config: GenerationConfig, input_ids: Tensor, **inputs: Any) -> Any:
        """The result of the model's `generate`, alone on the weights."""
        stops = generation_config.stop_strings
        generation_config.stop_strings = None  # transformers' own search for them fails on some tokenizers
        criteria = StoppingCriteriaList()
        if stops:
            criteria.append(AtText(self.chat.tokenizer, stops, input_ids.shape[1]))
        with self.lock:
            model, context = self.parts()
            with context, evaluation_mode(model, self.chat.precision), only_config(model, generation_config):
                return model.generate(
                    input_ids=input_ids, generation_config=generation_config, stopping_criteria=criteria, **inputs
                )

    def prompt_tokens(self, text: str, *, special: bool) -> list[int]:
        """The tokens of a prompt, checked against the embeddings."""
        tokenizer: Any = self.chat.tokenizer
        return self.known_tokens(list(tokenizer(text, add_special_tokens=special)["input_ids"]))

    def known_tokens(self, tokens: list[int]) -> list[int]:
        """`tokens`, each of which must have an embedding.

        Raises:
            ModelError: one has none.
        """
        require_known_tokens(self.parts()[0], self.chat.tokenizer, [tokens])
        return tokens

    @property
    def positions(self) -> int | None:
        """The positions that the model has for prompt and answer together; None without a limit."""
        return usable_positions(self.parts()[0])

    def parts(self) -> tuple[Any, AbstractContextManager[Any]]:
        """The model, and a context inside which it answers as it should."""
        if self.is_base and self.chat.is_tuned:
            return self.chat.base()
        return self.chat.model, nullcontext()


class AtText(StoppingCriteria):
    """Stops when the generated text holds one of several texts.

    Args:
        tokenizer: of the model.
        stops: the texts.
        start: number of tokens of the prompt.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str], start: int) -> None:
        self._tokenizer, self._stops, self._start = tokenizer, stops, start

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        """Whether each row is finished."""
        texts = [self._tokenizer.decode(row[self._start :], skip_special_tokens=True) for row in input_ids]
        return torch.tensor([any(stop in text for stop in self._stops) for text in texts], device=input_ids.device)
