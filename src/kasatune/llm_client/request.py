"""Requests to a served model, its replies and refusals, and the endpoint that they are sent to."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

Message = tuple[str, str]
"""Role ("system", "user" or "assistant") and text."""


@dataclass(frozen=True)
class Endpoint:
    """A model that is served with the OpenAI protocol.

    Attributes:
        model: name of the model on the server.
        url: address of the server, including /v1; None for OPENAI_BASE_URL, or if that is unset for OpenAI's server.
        rate: most requests a minute, retries included; None for no limit.
        workers: most requests in flight at once.
        retries: how often a request is repeated after status 408, 409, 429 or 500 and above, or no answer.
        timeout: seconds to wait for one answer.
    """

    model: str
    url: str | None = None
    rate: float | None = None
    workers: int = 1
    retries: int = 8
    timeout: float = 600.0


@dataclass(frozen=True)
class ChatRequest:
    """One chat request; requests with equal content are the same request.

    Attributes:
        model: name of the model on the server.
        messages: the conversation so far.
        temperature: sampling temperature; 0 for the most likely answer.
        max_tokens: tokens of the longest answer.
        seed: sent if given; distinguishes samples of one prompt.
    """

    model: str
    messages: tuple[Message, ...]
    temperature: float
    max_tokens: int
    seed: int | None = None

    @cached_property
    def key(self) -> str:
        """SHA-256 of the content, without the address of the server."""
        content = json.dumps(asdict(self), ensure_ascii=True, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()

    def body(self) -> dict[str, Any]:
        """The body of the request in the OpenAI protocol."""
        seed = {} if self.seed is None else {"seed": self.seed}
        return {
            "model": self.model,
            "messages": [{"role": role, "content": text} for role, text in self.messages],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            **seed,
        }


@dataclass(frozen=True)
class Reply:
    """A model's answer.

    Attributes:
        text: text of the first choice; "" if it has none.
        finish_reason: "stop", "length" or another reason of the server.
        prompt_tokens: as counted by the server; None if it does not report them.
        completion_tokens: as counted by the server; None if it does not report them.
        retries: how often the request was repeated before it was answered.
        url: address of the server that answered.
    """

    text: str
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    retries: int = 0
    url: str = ""


@dataclass(frozen=True)
class Refusal:
    """A request that the server refused, or answered with something that is not a chat completion.

    Attributes:
        reason: one sentence.
    """

    reason: str
