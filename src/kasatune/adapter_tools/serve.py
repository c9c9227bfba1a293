"""Serve a run, an adapter or a model over HTTP: OpenAI-compatible chat and text completions, base beside tuned model.

Requests are answered by the handlers of `transformers serve`, in the same form and streamed where asked for. They are
given models that are in memory already, under two names, and the decoding of kasatune: greedy unless a request has a
temperature, with the chat template and the ends of text of the training.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from threading import Lock
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from kasatune.adapter_tools.chat import ChatModel
from kasatune.data.chat_template import answer_end, render_chat
from kasatune.data.prompt_completion import ends_prompts
from kasatune.errors import InputError, KasatuneError, MissingExtraError
from kasatune.evaluation.batches import evaluation_mode
from kasatune.evaluation.generate import end_tokens, only_config
from kasatune.evaluation.known_tokens import require_known_tokens
from kasatune.weights.usable_positions import usable_positions
from kasatune.wording import counted

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
_READ_HERE = ("temperature", "top_p", "max_completion_tokens", "stop")
_NO_EFFECT = ("metadata", "service_tier", "store", "user", "parallel_tool_calls", "stream_options")
_NOT_SUPPORTED = {
    **dict.fromkeys(("n", "best_of"), 1),
    **dict.fromkeys(("presence_penalty", "frequency_penalty", "top_logprobs"), 0),
    **dict.fromkeys(("logprobs", "echo"), False),
    **dict.fromkeys(("tools", "functions", "tool_choice", "function_call", "response_format", "generation_config")),
    **dict.fromkeys(("audio", "modalities", "prediction", "reasoning_effort", "web_search_options", "suffix")),
}
"""Fields that would change an answer and are not supported, with the values that ask for nothing besides null."""


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
        return next(self._parts()[0].parameters()).device

    @property
    def config(self) -> Any:
        """The configuration of the model."""
        return self._parts()[0].config

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of `GenerationConfig` for a request that has none: greedy, until a token that ends a text."""
        tokenizer = self.chat.tokenizer
        end = answer_end(tokenizer) if self.chat.is_chat else None
        return {
            "max_new_tokens": self.chat.max_new_tokens,
            "do_sample": False,
            "use_cache": True,
            "eos_token_id": end_tokens(self._parts()[0], tokenizer, None if end is None else end.token),
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
            criteria.append(_AtText(self.chat.tokenizer, stops, input_ids.shape[1]))
        with self.lock:
            model, context = self._parts()
            with context, evaluation_mode(model, self.chat.precision), only_config(model, generation_config):
                return model.generate(
                    input_ids=input_ids, generation_config=generation_config, stopping_criteria=criteria, **inputs
                )

    def prompt_tokens(self, text: str, *, special: bool) -> list[int]:
        """The tokens of a prompt, checked against the embeddings."""
        tokenizer: Any = self.chat.tokenizer
        tokens = list(tokenizer(text, add_special_tokens=special)["input_ids"])
        require_known_tokens(self._parts()[0], tokenizer, [tokens])
        return tokens

    @property
    def positions(self) -> int | None:
        """The positions that the model has for prompt and answer together; None without a limit."""
        return usable_positions(self._parts()[0])

    def _parts(self) -> tuple[Any, AbstractContextManager[Any]]:
        """The model, and a context inside which it answers as it should."""
        if self.is_base and self.chat.is_tuned:
            return self.chat.base()
        return self.chat.model, nullcontext()


class _AtText(StoppingCriteria):
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
            HTTPException: there is none, status 404.
        """
        if name not in self.models:
            known = ", ".join(self.models)
            raise HTTPException(404, f"model: {name!r} received; this server has {known}")
        return self.models[name]

    def process_model_name(self, name: str) -> str:
        """The name, unchanged."""
        return name

    def load_model_and_processor(self, name: str, **_: Any) -> tuple[ServedModel, PreTrainedTokenizerBase]:
        """The model of this name and its tokenizer."""
        model = self.find(name)
        return model, model.chat.tokenizer

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
        return await _answer(manager, chat_handler.handle_request, body, _chat_prompt)

    @app.post("/v1/completions")
    async def text_completion(body: dict[str, Any]) -> Response:
        return await _answer(manager, text_handler.handle_request, body, _text_prompt)

    return app


async def _answer(
    manager: ServedModels,
    handle: Callable[..., Any],
    body: dict[str, Any],
    prompt_of: Callable[[ServedModel, dict[str, Any]], list[int]],
) -> Response:
    """Answer a request with a handler of transformers, after its checks and with the decoding of kasatune."""
    model = manager.find(body.get("model"))
    _refuse_unsupported(body)
    try:
        prompt = prompt_of(model, body)
    except KasatuneError as fault:
        raise HTTPException(400, str(fault)) from fault
    settings = model.settings | _sampling(body)
    stops = _stops(body)
    asked = {key: value for key, value in body.items() if key not in (*_NO_EFFECT, *_NOT_SUPPORTED, *_READ_HERE)}
    asked |= {"generation_config": json.dumps(settings), "max_tokens": _new_tokens(model, body, len(prompt))}
    asked |= {"stop": stops} if stops else {}
    response = await handle(asked, f"kasatune-{uuid4().hex}")
    if isinstance(response, StreamingResponse):
        response.body_iterator = _with_end(response.body_iterator)
        return response
    return _cut(response, stops) if stops else response


def _refuse_unsupported(body: Mapping[str, Any]) -> None:
    for field, neutral in _NOT_SUPPORTED.items():
        value = body.get(field)
        if value is not None and value != neutral:
            raise HTTPException(400, f"{field}: {value!r} received; this server does not support it; leave it out")


def _sampling(body: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of `GenerationConfig` for the temperature and the share of probability that a request has."""
    temperature, top_p = _number(body, "temperature", 0, 2), _number(body, "top_p", 0, 1)
    if not temperature:
        return {}
    return {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0 if top_p is None else top_p}


def _number(body: Mapping[str, Any], field: str, low: float, high: float) -> float | None:
    value = body.get(field)
    if value is not None and (
        isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high
    ):
        raise HTTPException(400, f"{field}: {value!r} received; must be a number from {low} to {high}")
    return value


def _new_tokens(model: ServedModel, body: Mapping[str, Any], prompt: int) -> int:
    """The most tokens of an answer: as asked for, or as in the run's evaluation, within the positions of the model."""
    field = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    asked = body.get(field)
    if asked is not None and (isinstance(asked, bool) or not isinstance(asked, int) or asked < 1):
        raise HTTPException(400, f"{field}: {asked!r} received; must be a whole number, 1 or more")
    wanted = model.chat.max_new_tokens if asked is None else asked
    room = wanted if model.positions is None else model.positions - prompt
    if room < 1:
        raise HTTPException(
            400,
            f"the prompt has {counted(prompt, 'token')}, and the model {model.positions} positions for prompt and "
            "answer",
        )
    return min(wanted, room)


def _stops(body: Mapping[str, Any]) -> list[str]:
    """The texts at which an answer ends."""
    stop = body.get("stop") or []
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(text, str) and text for text in stops):
        raise HTTPException(400, f"stop: {stop!r} received; give a text or a list of texts")
    if stops and body.get("stream"):
        raise HTTPException(400, "stop: not supported in a stream; leave out stop or stream")
    return stops


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


def _chat_prompt(model: ServedModel, body: dict[str, Any]) -> list[int]:
    if not model.chat.is_chat:
        raise HTTPException(400, "this model was trained on prompts, not on conversations; use /v1/completions")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise HTTPException(400, "messages: missing; give a list of {role, content}")
    chat = [_message(number, message) for number, message in enumerate(messages, start=1)]
    if chat[-1][0] == "assistant":
        raise HTTPException(400, "messages: the last one is the assistant's; end with a message to answer")
    if model.chat.prompter is not None:  # a run on questions about documents reads their passages with the question
        chat[-1] = (chat[-1][0], model.chat.prompter(chat[-1][1]).text)
    body["messages"] = [{"role": role, "content": text} for role, text in chat]
    return model.prompt_tokens(render_chat(model.chat.tokenizer, chat), special=False)


def _message(number: int, message: Any) -> tuple[str, str]:
    role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
    if isinstance(content, list):
        texts = [
            part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content
        ]
        content = None if None in texts else "".join(str(text) for text in texts)
    if not isinstance(role, str) or not isinstance(content, str):
        raise HTTPException(400, f"message {number}: {message!r} received; a role and text as content are needed")
    return role, content


def _text_prompt(model: ServedModel, body: dict[str, Any]) -> list[int]:
    prompt = body.get("prompt")
    if isinstance(prompt, Sequence) and not isinstance(prompt, str) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str) or not prompt:
        raise HTTPException(400, f"prompt: {prompt!r} received; give one text")
    if ends_prompts(model.chat.tokenizer):
        raise HTTPException(400, "the tokenizer puts its EOS token after every text, so prompts cannot be continued")
    body["prompt"] = prompt
    return model.prompt_tokens(prompt, special=True)


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
