"""One request over HTTP, by the client `openai`, with its faults in kasatune's words."""

from __future__ import annotations

import os
import time
from threading import Lock
from typing import Any

from kasatune.errors import InputError, MissingExtraError, WorkError
from kasatune.llm_client.request import ChatRequest, Endpoint, Refusal, Reply

KEY = "OPENAI_API_KEY"
URL = "OPENAI_BASE_URL"
_NO_KEY = "none"  # servers of one's own ask for none, and the client will not go without
_REFUSED = (400, 413, 422)


class Pace:
    """At most `rate` requests a minute, spread evenly.

    Args:
        rate: None for no limit.
    """

    def __init__(self, rate: float | None) -> None:
        self._between = 60.0 / rate if rate else 0.0
        self._next = 0.0
        self._lock = Lock()

    def wait(self, *_: Any) -> None:
        """Return when the next request may go out."""
        with self._lock:
            now = time.monotonic()
            start = max(now, self._next)
            self._next = start + self._between
        time.sleep(start - now)


def require_endpoint(endpoint: Endpoint) -> None:
    """What can be known to be wrong with `endpoint` before anything is sent, or written.

    Raises:
        MissingExtraError: as `ChatClient` has it.
        InputError: the same.
    """
    ChatClient(endpoint).close()


class ChatClient:
    """Chat completions of one model; may be used by several threads.

    Args:
        endpoint: the model.

    Raises:
        MissingExtraError: the package openai is not installed.
        InputError: there is neither a key nor a server of one's own, or the address is none.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        try:
            import openai
        except ImportError as fault:
            raise MissingExtraError("asking a served model", "judge") from fault
        self._endpoint = endpoint
        url = endpoint.url or os.environ.get(URL)
        if url is not None and not url.startswith(("http://", "https://")):
            raise InputError(f"{url!r} is no address of a server; give one such as http://localhost:8000/v1")
        key = os.environ.get(KEY)
        if not key and url is None:
            raise InputError(f"no key for {endpoint.model}: set {KEY}, or give the address of a server of your own")
        pace = Pace(endpoint.rate)
        self._client = openai.OpenAI(
            api_key=key or _NO_KEY,
            base_url=url,
            max_retries=endpoint.retries,
            timeout=endpoint.timeout,
            http_client=openai.DefaultHttpxClient(event_hooks={"request": [pace.wait]}),
        )
        self.url = str(self._client.base_url)

    def close(self) -> None:
        """Give up the connections."""
        self._client.close()

    def send(self, request: ChatRequest) -> Reply | Refusal:
        """The answer, after as many retries as the endpoint allows.

        Raises:
            InputError: the server knows neither this key nor this model.
            WorkError: the server could not be reached or failed every time.
        """
        import openai

        try:
            raw = self._client.chat.completions.with_raw_response.create(**request.body())
            retries, completion = raw.retries_taken, raw.parse()
        except openai.APIStatusError as fault:
            return self._refusal(fault)
        except openai.APIConnectionError as fault:
            raise WorkError(
                f"{self.url}: no answer ({fault.__cause__ or fault}); is the server there? The same command goes on"
            ) from fault
        except (openai.OpenAIError, ValueError) as fault:
            return Refusal(f"the answer is no chat completion ({fault})")
        return _reply(completion, retries, self.url)

    def _refusal(self, fault: Any) -> Refusal:
        """What a status that is no success means for this request, or for all of them."""
        status, said = fault.status_code, " ".join(str(fault.message).split())[:300]
        if status in (401, 403):
            raise InputError(f"{self.url}: the key was refused ({said}); set {KEY} to one that is valid there")
        if status == 404:
            raise InputError(f"{self.url}: no model {self._endpoint.model!r} there ({said}); check name and address")
        if status in _REFUSED:
            return Refusal(f"the server refused the request with status {status} ({said})")
        raise WorkError(
            f"{self.url}: status {status} after {self._endpoint.retries} retries ({said});"
            " the same command goes on where it stopped"
        )


def _reply(completion: Any, retries: int, url: str) -> Reply | Refusal:
    try:
        choice, usage = completion.choices[0], completion.usage
        text = choice.message.content
    except (AttributeError, IndexError, TypeError):
        return Refusal(f"the answer is no chat completion ({str(completion)[:100]!r})")
    if text is not None and not isinstance(text, str):
        return Refusal(f"the answer is no text ({str(text)[:100]!r})")
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
