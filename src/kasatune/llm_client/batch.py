"""Many requests put to one served model, each answered once however often the work is begun again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from threading import Lock
from typing import Any

from kasatune.llm_client.cache import AnswerCache
from kasatune.llm_client.client import ChatClient
from kasatune.llm_client.request import ChatRequest, Endpoint, Refusal, Reply

ProgressCallback = Callable[[int, int], None]
"""Called with the number of finished items and their total."""


class CachedClient:
    """Answers from the ledger where they are there, else from the server; use as a context.

    Refusals are not written down: they are asked again when the work is.

    Args:
        endpoint: the model.
        ledger: open; belongs to the caller.

    Raises:
        MissingExtraError: the package openai is not installed.
        InputError: there is neither a key nor a server of one's own.
    """

    def __init__(self, endpoint: Endpoint, ledger: AnswerCache) -> None:
        self.endpoint = endpoint
        self.asked = 0
        self._lock = Lock()
        self._ledger = ledger
        self._protocol = ChatClient(endpoint)

    def __enter__(self) -> CachedClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._protocol.close()

    def known(self, request: ChatRequest) -> Reply | None:
        """The answer that the ledger holds."""
        entry = self._ledger.get(request.key)
        return None if entry is None else Reply(**entry["reply"])

    def ask(self, request: ChatRequest) -> Reply | Refusal:
        """One answer.

        Raises:
            InputError: the server knows neither this key nor this model.
            WorkError: the server could not be reached or failed, again and again.
        """
        found = self.known(request)
        if found is not None:
            return found
        reply = self._protocol.send(request)
        with self._lock:
            self.asked += 1
        if isinstance(reply, Reply):
            self._ledger.add(request.key, {"request": request.body(), "reply": asdict(reply)})
        return reply

    def ask_all(
        self, requests: Sequence[ChatRequest], progress: ProgressCallback = lambda done, total: None
    ) -> list[Reply | Refusal]:
        """The answers in the order of the requests; equal requests are one.

        Args:
            requests: any number.
            progress: is told how many different requests are answered, and how many there are.

        Raises:
            InputError: as `ask` has it.
            WorkError: the same; what was answered before is kept.
        """
        different = {request.key: request for request in requests}
        answers: dict[str, Reply | Refusal] = {}
        if self.endpoint.workers == 1:
            for key, request in different.items():
                answers[key] = self.ask(request)
                progress(len(answers), len(different))
        else:
            self._at_once(different, answers, progress)
        return [answers[request.key] for request in requests]

    def _at_once(
        self, requests: dict[str, ChatRequest], answers: dict[str, Any], progress: Callable[..., None]
    ) -> None:
        pool = ThreadPoolExecutor(self.endpoint.workers)
        try:
            keys = {pool.submit(self.ask, request): key for key, request in requests.items()}
            for future in as_completed(keys):
                answers[keys[future]] = future.result()
                progress(len(answers), len(requests))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        pool.shutdown()
