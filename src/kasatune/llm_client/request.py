"""What is asked of a served model, and what comes back."""

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
    """A model behind the OpenAI protocol.

    Attributes:
        model: its name on the server.
        url: of the server, up to and with /v1; None for what OPENAI_BASE_URL says, or else OpenAI's own.
        rate: most requests a minute, retries included; None for no limit.
        workers: requests that may be on their way at once.
        retries: how often one request is sent again after 408, 409, 429, a status of 500 or more, or no answer at all.
        timeout: seconds that a server may take for one answer.
    """

    model: str
    url: str | None = None
    rate: float | None = None
    workers: int = 1
    retries: int = 8
    timeout: float = 600.0


@dataclass(frozen=True)
class ChatRequest:
    """One request; two of equal content are the same request.

    Attributes:
        model: name on the server.
        messages: the conversation so far.
        temperature: of the sampling; 0 for the likeliest answer.
        max_tokens: the longest answer.
        seed: sent along where it is given; tells apart samples of one prompt.
    """

    model: str
    messages: tuple[Message, ...]
    temperature: float
    max_tokens: int
    seed: int | None = None

    @cached_property
    def key(self) -> str:
        """SHA-256 of the content; the server's address is no part of it."""
        content = json.dumps(asdict(self), ensure_ascii=True, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()

    def body(self) -> dict[str, Any]:
        """The content in the protocol's words."""
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
        text: of the first choice; "" where the server gave none.
        finish_reason: "stop", "length" or what else the server says.
        prompt_tokens: as the server counts them; None where it does not.
        completion_tokens: the same of the answer.
        retries: how often the request was sent again before it was answered.
        url: of the server that answered.
    """

    text: str
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    retries: int = 0
    url: str = ""


@dataclass(frozen=True)
class Refusal:
    """What the server would not answer, or answered with something that is no chat completion.

    Attributes:
        reason: in one sentence.
    """

    reason: str
