"""Log-probabilities of given texts in OpenAI's form (`echo` with `logprobs`), as lm-eval asks for them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor

from kasatune.adapter_tools.serve_requests import RequestError, text_prompts
from kasatune.adapter_tools.served_model import ServedModel
from kasatune.evaluation.batches import evaluation_mode
from kasatune.wording import counted

MOST_ALTERNATIVES = 20
_READ_HERE = ("model", "prompt", "echo", "logprobs", "max_tokens", "temperature")
_NO_EFFECT = ("seed", "stop", "top_p", "user", "n", "best_of", "stream", "suffix", "presence_penalty", "logit_bias")


def asks_for_log_probabilities(body: Mapping[str, Any]) -> bool:
    """Whether a text completion asks for the log-probabilities of its own prompt."""
    return bool(body.get("echo")) and body.get("logprobs") is not None


def log_probabilities_of_prompts(model: ServedModel, body: Mapping[str, Any]) -> dict[str, Any]:
    """The response to a request for log p(token | tokens before it) of every token of its prompts.

    The first token has none. With `max_tokens: 1` the most probable next token follows. Each token comes with the
    `logprobs` most probable tokens at its place.

    Args:
        model: the model.
        body: the request, with `echo` and `logprobs`.

    Raises:
        RequestError: a field is outside its limits, or a prompt is too long.
    """
    top, new = _alternatives(body), _new_tokens(body)
    prompts = text_prompts(model, body)
    for tokens in prompts:
        if model.positions is not None and len(tokens) > model.positions:
            raise RequestError(
                f"the prompt has {counted(len(tokens), 'token')}, and the model {model.positions} positions"
            )
    choices = [_choice(model, number, tokens, top, new) for number, tokens in enumerate(prompts)]
    read, written = sum(map(len, prompts)), new * len(prompts)
    return {
        "id": f"kasatune-{uuid4().hex}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": body["model"],
        "choices": choices,
        "usage": {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written},
    }


def _alternatives(body: Mapping[str, Any]) -> int:
    unread = [key for key, value in body.items() if key not in (*_READ_HERE, *_NO_EFFECT) and value is not None]
    if unread:
        raise RequestError(f"{unread[0]}: not supported with echo and logprobs; leave it out")
    if body.get("stream") or body.get("temperature"):
        raise RequestError(
            "echo with logprobs is answered at once and without sampling; leave out stream and temperature"
        )
    top = body["logprobs"]
    if isinstance(top, bool) or not isinstance(top, int) or not 0 <= top <= MOST_ALTERNATIVES:
        raise RequestError(f"logprobs: {top!r} received; must be a whole number from 0 to {MOST_ALTERNATIVES}")
    return top


def _new_tokens(body: Mapping[str, Any]) -> int:
    asked = body.get("max_tokens")
    if isinstance(asked, bool) or asked not in (0, 1):
        raise RequestError(f"max_tokens: {asked!r} received; with echo and logprobs it must be 0 or 1")
    return asked


@torch.no_grad()
def _choice(served: ServedModel, number: int, prompt: list[int], top: int, new: int) -> dict[str, Any]:
    with served.lock:
        model, context = served.parts()
        with context, evaluation_mode(model, served.chat.precision):
            logits = model(input_ids=torch.tensor([prompt], device=served.device)).logits[0]
    log_p = torch.log_softmax(logits.float(), dim=-1).cpu()
    tokens = [*prompt, *([int(log_p[-1].argmax())] if new else [])]
    decode: Any = served.chat.tokenizer.decode
    texts = [decode([token]) for token in tokens]
    before = log_p[: len(tokens) - 1]
    values = before.gather(1, torch.tensor(tokens[1:]).unsqueeze(1)).squeeze(1).tolist()
    return {
        "index": number,
        "text": decode(tokens),
        "finish_reason": "length",
        "logprobs": {
            "tokens": texts,
            "token_logprobs": [None, *values],
            "top_logprobs": [None, *(_most_probable(row, top, decode) for row in before)],
            "text_offset": [sum(map(len, texts[:place])) for place in range(len(texts))],
        },
    }


def _most_probable(row: Tensor, top: int, decode: Any) -> dict[str, float]:
    """The most probable tokens by their text; of several tokens with one text the most probable."""
    values, tokens = row.topk(top)
    result: dict[str, float] = {}
    for value, token in zip(values.tolist(), tokens.tolist(), strict=True):
        result.setdefault(decode([token]), value)
    return result
