"""Requests in OpenAI's form, checked before a model is asked: fields, sampling, lengths, messages and prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kasatune.adapter_tools.served_model import ServedModel
from kasatune.data.chat_template import render_chat
from kasatune.data.prompt_completion import ends_prompts
from kasatune.errors import InputError
from kasatune.recipes.messages import show
from kasatune.wording import counted

READ_HERE = ("temperature", "top_p", "max_completion_tokens", "stop")
NO_EFFECT = ("metadata", "service_tier", "store", "user", "parallel_tool_calls", "stream_options")
NOT_SUPPORTED = {
    **dict.fromkeys(("n", "best_of"), 1),
    **dict.fromkeys(("presence_penalty", "frequency_penalty", "top_logprobs"), 0),
    **dict.fromkeys(("logprobs", "echo"), False),
    **dict.fromkeys(("tools", "functions", "tool_choice", "function_call", "response_format", "generation_config")),
    **dict.fromkeys(("audio", "modalities", "prediction", "reasoning_effort", "web_search_options", "suffix")),
}
"""Fields that would change an answer and are not supported, with the values that ask for nothing besides null."""


class RequestError(InputError):
    """A request cannot be answered.

    Args:
        message: the value received, the limit and the remedy.
        status: of the response.
    """

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


def refuse_unsupported(body: Mapping[str, Any]) -> None:
    """Refuse a request with a field that would change its answer and is not supported.

    Raises:
        RequestError: it has one, by name.
    """
    for field, neutral in NOT_SUPPORTED.items():
        value = body.get(field)
        if value is not None and value != neutral:
            raise RequestError(f"{field}: {value!r} received; this server does not support it; leave it out")


def sampling(body: Mapping[str, Any]) -> dict[str, Any]:
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
        raise RequestError(f"{field}: {value!r} received; must be a number from {low} to {high}")
    return value


def new_tokens(model: ServedModel, body: Mapping[str, Any], prompt: int) -> int:
    """The most tokens of an answer: as asked for, or as in the run's evaluation, within the positions of the model."""
    field = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    asked = body.get(field)
    if asked is not None and (isinstance(asked, bool) or not isinstance(asked, int) or asked < 1):
        raise RequestError(f"{field}: {asked!r} received; must be a whole number, 1 or more")
    wanted = model.chat.max_new_tokens if asked is None else asked
    room = wanted if model.positions is None else model.positions - prompt
    if room < 1:
        raise RequestError(
            f"the prompt has {counted(prompt, 'token')}, and the model {model.positions} positions for prompt and "
            "answer",
        )
    return min(wanted, room)


def stop_texts(body: Mapping[str, Any]) -> list[str]:
    """The texts at which an answer ends."""
    stop = body.get("stop") or []
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(text, str) and text for text in stops):
        raise RequestError(f"stop: {stop!r} received; give a text or a list of texts")
    if stops and body.get("stream"):
        raise RequestError("stop: not supported in a stream; leave out stop or stream")
    return stops


def chat_prompt(model: ServedModel, body: dict[str, Any]) -> list[int]:
    """The tokens of a conversation in the chat template of the training; `body` gets its messages as plain text.

    Raises:
        RequestError: the model is none of conversations, or the messages are no texts to answer.
    """
    if not model.chat.is_chat:
        raise RequestError("this model was trained on prompts, not on conversations; use /v1/completions")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RequestError("messages: missing; give a list of {role, content}")
    chat = [_message(number, message) for number, message in enumerate(messages, start=1)]
    if chat[-1][0] == "assistant":
        raise RequestError("messages: the last one is the assistant's; end with a message to answer")
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
        raise RequestError(f"message {number}: {message!r} received; a role and text as content are needed")
    return role, content


def text_prompt(model: ServedModel, body: dict[str, Any]) -> list[int]:
    """The tokens of the only prompt of a text completion, given as a text or as tokens.

    Raises:
        RequestError: there are several, or none.
    """
    prompts = text_prompts(model, body)
    if len(prompts) > 1:
        raise RequestError(f"prompt: {len(prompts)} prompts received; give one")
    body["prompt"] = "as tokens"  # the handler of transformers wants a text here, and `PromptTokens` gives it these
    return prompts[0]


def text_prompts(model: ServedModel, body: Mapping[str, Any]) -> list[list[int]]:
    """The tokens of the prompts of a text completion: a text, tokens, or a list of either.

    Raises:
        RequestError: a prompt is neither, or is empty.
    """
    given = body.get("prompt")
    prompts = given if isinstance(given, list) and given and not _is_tokens(given) else [given]
    return [_tokens(model, prompt) for prompt in prompts]


def _tokens(model: ServedModel, prompt: Any) -> list[int]:
    if isinstance(prompt, list) and _is_tokens(prompt):
        return model.known_tokens(prompt)
    if not isinstance(prompt, str) or not prompt:
        raise RequestError(f"prompt: {show(prompt)} received; give a text, or a list of tokens")
    if ends_prompts(model.chat.tokenizer):
        raise RequestError("the tokenizer puts its EOS token after every text, so prompts cannot be continued")
    return model.prompt_tokens(prompt, special=True)


def _is_tokens(prompt: list[Any]) -> bool:
    return bool(prompt) and all(
        isinstance(token, int) and not isinstance(token, bool) and token >= 0 for token in prompt
    )
