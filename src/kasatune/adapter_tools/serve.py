"""Serve a run, an adapter or a model over HTTP: OpenAI-compatible chat and text completions, base beside tuned model.

Requests are answered by the handlers of `transformers serve`, in the same form and streamed where asked for. They are
given models that are in memory already, under two names, and the decoding of kasatune: greedy unless a request has a
temperature, with the chat template and the ends of text of the training.
"""

from __future__ import annotations

import json
import time
from asyncio import to_thread
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from contextvars import ContextVar
from threading import Lock
from typing import Any
from uuid import uuid4

import torch
from transformers import BatchEncoding, PreTrainedTokenizerBase

from kasatune.adapter_tools.chat import ChatModel
from kasatune.adapter_tools.serve_logprobs import asks_for_log_probabilities, log_probabilities_of_prompts
from kasatune.adapter_tools.serve_requests import (
    NO_EFFECT,
    NOT_SUPPORTED,
    READ_HERE,
    RequestError,
    chat_prompt,
    new_tokens,
    refuse_unsupported,
    sampling,
    stop_texts,
    text_prompt,
)
from kasatune.adapter_tools.served_model import ServedModel
from kasatune.errors import InputError, KasatuneError, MissingExtraError

try:
    from fastapi import FastAPI, HTTPException, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, Response, StreamingResponse
    from transformers.cli.serving.chat_completion import ChatCompletionHandler
    from transformers.cli.serving.completion import CompletionHandler
    from transformers.cli.serving.utils import GenerationState, Modality
except ImportError as fault:
    raise MissingExtraError("kasatune serve", "serving") from fault

BASE, TUNED = "base", "tuned"

_PROMPT: ContextVar[list[int] | None] = ContextVar("prompt", default=None)
"""The tokens of the text completion that is being answered."""


class PromptTokens:
    """A tokenizer that gives the tokens of one prompt, in the place of the one that a handler of transformers reads.

    Args:
        tokenizer: of the model, for everything else.
        tokens: of the prompt.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> None:
        self._decoding, self._tokens = tokenizer, tokens

    def __call__(self, prompt: str, **_: Any) -> BatchEncoding:
        """The tokens as a batch of one row."""
        ids = torch.tensor([self._tokens])
        return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decoding, name)


class ServedModels:
    """The models of a server by name, in the place of transformers' manager, which loads models from the hub.

    Args:
        models: by the names that clients ask for.
    """

    force_model: str | None = None

    def __init__(self, models: Mapping[str, ServedModel]) -> None:
        self.models = models

    def find(self, name: Any) -> ServedModel:
        """The model that a request names.

        Raises:
            RequestError: there is none, status 404.
        """
        if not isinstance(name, str) or name not in self.models:
            known = ", ".join(self.models)
            raise RequestError(f"model: {name!r} received; this server has {known}", 404)
        return self.models[name]

    def process_model_name(self, name: str) -> str:
        """The name, unchanged."""
        return name

    def load_model_and_processor(self, name: str, **_: Any) -> tuple[ServedModel, Any]:
        """The model of this name and its tokenizer, which gives the tokens of the prompt in a text completion."""
        model, prompt = self.find(name), _PROMPT.get()
        tokenizer = model.chat.tokenizer
        return model, tokenizer if prompt is None else PromptTokens(tokenizer, prompt)

    def get_model_modality(self, model: ServedModel, processor: Any = None) -> Modality:
        """Text, for every model."""
        return Modality.LLM


def require_name(name: str) -> None:
    """Check the name of a tuned model.

    Raises:
        InputError: it cannot be told from that of the base, or is no name.
    """
    if not name.strip() or name == BASE or name.endswith(".gguf"):
        raise InputError(f"--name: {name!r} received; give another name than {BASE}, without the ending .gguf")


def served_models(chat: ChatModel, name: str = TUNED) -> dict[str, ServedModel]:
    """The models to serve: the tuned one as `name` and its base as "base"; a base model alone as "base".

    Raises:
        InputError: see `require_name`.
    """
    require_name(name)
    lock = Lock()
    base = {BASE: ServedModel(chat, True, lock)}
    if not chat.is_tuned:
        return base
    chat.base()  # a base that is loaded separately is loaded before the first request
    return {name: ServedModel(chat, False, lock), **base}


def build_app(models: Mapping[str, ServedModel]) -> FastAPI:
    """The server's application: /v1/models, /v1/chat/completions, /v1/completions and /health."""
    app = FastAPI(title="kasatune", docs_url=None, redoc_url=None, openapi_url=None)
    manager: Any = ServedModels(models)
    state = GenerationState()
    chat_handler, text_handler = ChatCompletionHandler(manager, state), CompletionHandler(manager, state)
    started = int(time.time())

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> JSONResponse:
        return _error(str(error.detail), error.status_code)

    @app.exception_handler(KasatuneError)
    async def failed_by_name(_: Request, error: KasatuneError) -> JSONResponse:
        other = 400 if isinstance(error, InputError) else 500
        return _error(str(error), error.status if isinstance(error, RequestError) else other)

    @app.exception_handler(RequestValidationError)
    async def unreadable(_: Request, error: RequestValidationError) -> JSONResponse:
        return _error("the body of the request is no JSON object", 400)

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        return _error(f"{type(error).__name__}: {error}", 500)

    @app.get("/v1/models")
    def listed() -> dict[str, Any]:
        entries = [{"id": name, "object": "model", "created": started, "owned_by": "kasatune"} for name in models]
        return {"object": "list", "data": entries}

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/v1/chat/completions")
    async def chat_completion(body: dict[str, Any]) -> Response:
        return await _answer(manager, chat_handler.handle_request, body, chat_prompt)

    @app.post("/v1/completions")
    async def text_completion(body: dict[str, Any]) -> Response:
        if asks_for_log_probabilities(body):
            return JSONResponse(await to_thread(log_probabilities_of_prompts, manager.find(body.get("model")), body))
        return await _answer(manager, text_handler.handle_request, body, text_prompt)

    return app


async def _answer(
    manager: ServedModels,
    handle: Callable[..., Any],
    body: dict[str, Any],
    prompt_of: Callable[[ServedModel, dict[str, Any]], list[int]],
) -> Response:
    """Answer a request with a handler of transformers, after its checks and with the decoding of kasatune."""
    model = manager.find(body.get("model"))
    refuse_unsupported(body)
    prompt = prompt_of(model, body)
    _PROMPT.set(prompt if prompt_of is text_prompt else None)
    settings = model.settings | sampling(body)
    stops = stop_texts(body)
    asked = {key: value for key, value in body.items() if key not in (*NO_EFFECT, *NOT_SUPPORTED, *READ_HERE)}
    asked |= {"generation_config": json.dumps(settings), "max_tokens": new_tokens(model, body, len(prompt))}
    asked |= {"stop": stops} if stops else {}
    response = await handle(asked, f"kasatune-{uuid4().hex}")
    if isinstance(response, StreamingResponse):
        response.body_iterator = _with_end(response.body_iterator)
        return response
    return _cut(response, stops) if stops else response


def _cut(response: JSONResponse, stops: Sequence[str]) -> JSONResponse:
    """The response with its text cut before the first of `stops`, which transformers leaves in the text."""
    content = json.loads(bytes(response.body))
    for choice in content["choices"]:
        holder, key = (choice["message"], "content") if "message" in choice else (choice, "text")
        text = holder.get(key) or ""
        ends = [place for stop in stops if (place := text.find(stop)) >= 0]
        if ends:
            holder[key], choice["finish_reason"] = text[: min(ends)], "stop"
    return JSONResponse(content)


async def _with_end(pieces: AsyncIterable[Any]) -> AsyncIterator[Any]:
    """The events of a stream, and the one that ends it in OpenAI's protocol."""
    async for piece in pieces:
        yield piece
    yield "data: [DONE]\n\n"


def _error(message: str, status: int) -> JSONResponse:
    """An error in OpenAI's form."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    code = "model_not_found" if status == 404 else None
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": code}}, status_code=status)
