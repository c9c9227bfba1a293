"""Send one chat request over HTTP with the `openai` client, and translate its errors."""

from __future__ import annotations

import os
import time
from threading import Lock
from typing import Any

from kasatune.errors import InputError, MissingExtraError, WorkError
from kasatune.llm_client.request import ChatRequest, Endpoint, Refusal, Reply
from kasatune.wording import counted

KEY = "OPENAI_API_KEY"
URL = "OPENAI_BASE_URL"
_NO_KEY = "none"  # self-hosted servers need no key, but the client requires a value
_REFUSED_STATUS = (400, 413, 422)


class RateLimit:
    """At most `rate` requests a minute, evenly spaced.

    Args:
        rate: None for no limit.
    """

    def __init__(self, rate: float | None) -> None:
        self._interval = 60.0 / rate if rate else 0.0
        self._next = 0.0
        self._lock = Lock()

    def wait(self, *_: Any) -> None:
        """Block until the next request may be sent."""
        with self._lock:
            now = time.monotonic()
            start = max(now, self._next)
            self._next = start + self._interval
        time.sleep(start - now)


def require_endpoint(endpoint: Endpoint) -> None:
    """Check `endpoint` without sending or writing anything.

    Raises:
        MissingExtraError: see `ChatClient`.
        InputError: see `ChatClient`.
    """
    ChatClient(endpoint).close()


class ChatClient:
    """Chat completions of one model; safe to use from several threads.

    Args:
        endpoint: endpoint of the model.

    Raises:
        MissingExtraError: the package openai is not installed.
        InputError: there is neither a key nor the address of a server, or the address is not a URL.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        try:
            import openai
        except ImportError as fault:
            raise MissingExtraError("asking a served model", "judge") from fault
        self._endpoint = endpoint
        url = endpoint.url or os.environ.get(URL)
        if url is not None and not url.startswith(("http://", "https://")):
            raise InputError(f"{url!r} is not the address of a server; give one such as http://localhost:8000/v1")
        key = os.environ.get(KEY)
        if not key and url is None:
            raise InputError(f"no key for {endpoint.model}: set {KEY}, or give the address of your own server")
        rate_limit = RateLimit(endpoint.rate)
        self._client = openai.OpenAI(
            api_key=key or _NO_KEY,
            base_url=url,
            max_retries=endpoint.retries,
            timeout=endpoint.timeout,
            http_client=openai.DefaultHttpxClient(event_hooks={"request": [rate_limit.wait]}),
        )
        self.url = str(self._client.base_url)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def send(self, request: ChatRequest) -> Reply | Refusal:
        """The answer, after at most the endpoint's number of retries.

        Raises:
            InputError: the server does not accept the key or has no such model.
            WorkError: the server could not be reached or failed after all retries.
        """
        import openai

        try:
            raw = self._client.chat.completions.with_raw_response.create(**request.body())
            retries, completion = raw.retries_taken, raw.parse()
        except openai.APIStatusError as fault:
            return self._refusal(fault)
        except openai.APIConnectionError as fault:
            raise WorkError(
                f"{self.url}: no answer ({fault.__cause__ or fault}); is the server running? Give the same command"
                f" to resume"
            ) from fault
        except (openai.OpenAIError, ValueError) as fault:
            return Refusal(f"the answer is not a chat completion ({fault})")
        return _reply(completion, retries, self.url)

    def _refusal(self, fault: Any) -> Refusal:
        """Translate an error status: a refusal of this request, or an error that stops all requests."""
        status, message = fault.status_code, " ".join(str(fault.message).split())[:300]
        if status in (401, 403):
            raise InputError(f"{self.url}: the key was refused ({message}); set {KEY} to one that is valid there")
        if status == 404:
            raise InputError(f"{self.url}: no model {self._endpoint.model!r} there ({message}); check name and address")
        if status in _REFUSED_STATUS:
            return Refusal(f"the server refused the request with status {status} ({message})")
        raise WorkError(
            f"{self.url}: status {status} after {counted(self._endpoint.retries, 'retry')} ({message});"
            " give the same command to resume where it stopped"
        )


def _reply(completion: Any, retries: int, url: str) -> Reply | Refusal:
    try:
        choice, usage = completion.choices[0], completion.usage
        text = choice.message.content
    except (AttributeError, IndexError, TypeError):
        return Refusal(f"the answer is not a chat completion ({str(completion)[:100]!r})")
    if text is not None and not isinstance(text, str):
        return Refusal(f"the answer is not text ({str(text)[:100]!r})")
    return Reply(
        text=text or "",
        finish_reason=choice.finish_reason,
        prompt_tokens=_count(usage, "prompt_tokens"),
        completion_tokens=_count(usage, "completion_tokens"),
        retries=retries,
        url=url,
    )


def _count(usage: Any, name: str) -> int | None:
    number = getattr(usage, name, None)
    return number if isinstance(number, int) and number >= 0 else None
