"""Send batches of requests to a served model, with a cache on disk so that no request is answered twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from threading import Lock

from kasatune.llm_client.cache import AnswerCache
from kasatune.llm_client.client import ChatClient
from kasatune.llm_client.request import ChatRequest, Endpoint, Refusal, Reply

ProgressCallback = Callable[[int, int], None]
"""Called with the number of finished items and their total."""


class CachedClient:
    """Answers requests from a cache, or from the server if the cache lacks them; use as a context manager.

    Refusals are not cached: they are requested again the next time.

    Args:
        endpoint: endpoint of the model.
        cache: open cache; the caller closes it.

    Raises:
        MissingExtraError: the package openai is not installed.
        InputError: there is neither a key nor the address of a server.
    """

    def __init__(self, endpoint: Endpoint, cache: AnswerCache) -> None:
        self.endpoint = endpoint
        self.requests_sent = 0
        self._lock = Lock()
        self._cache = cache
        self._client = ChatClient(endpoint)

    def __enter__(self) -> CachedClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def cached(self, request: ChatRequest) -> Reply | None:
        """The reply in the cache, or None."""
        entry = self._cache.get(request.key)
        return None if entry is None else Reply(**entry["reply"])

    def ask(self, request: ChatRequest) -> Reply | Refusal:
        """The answer to one request.

        Raises:
            InputError: the server does not accept the key or has no such model.
            WorkError: the server could not be reached or failed after all retries.
        """
        reply = self.cached(request)
        if reply is not None:
            return reply
        answer = self._client.send(request)
        with self._lock:
            self.requests_sent += 1
        if isinstance(answer, Reply):
            self._cache.add(request.key, {"request": request.body(), "reply": asdict(answer)})
        return answer

    def ask_all(
        self, requests: Sequence[ChatRequest], progress: ProgressCallback = lambda done, total: None
    ) -> list[Reply | Refusal]:
        """The answers in the order of the requests; equal requests are sent once.

        Args:
            requests: any number of requests.
            progress: called with the number of distinct requests answered so far and their total.

        Raises:
            InputError: see `ask`.
            WorkError: see `ask`; earlier answers stay in the cache.
        """
        distinct = {request.key: request for request in requests}
        answers: dict[str, Reply | Refusal] = {}
        if self.endpoint.workers == 1:
            for key, request in distinct.items():
                answers[key] = self.ask(request)
                progress(len(answers), len(distinct))
        else:
            self._ask_in_parallel(distinct, answers, progress)
        return [answers[request.key] for request in requests]

    def _ask_in_parallel(
        self, requests: dict[str, ChatRequest], answers: dict[str, Reply | Refusal], progress: ProgressCallback
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
