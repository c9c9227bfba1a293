"""Tokenize conversations with the model's chat template, with labels for the tokens of the answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from kasatune.data.prompt_completion import IGNORED, LossOn
from kasatune.data.readers.conversations import Chat
from kasatune.data.tokenize import Examples, tokenize
from kasatune.errors import ModelError

# For models that have no chat template: the headings of Alpaca's prompt.
PLAIN_TEMPLATE = """{{ bos_token or '' }}{% for message in messages %}\
{% if message.role == 'system' %}{{ message.content }}

{% elif message.role == 'user' %}### Instruction:
{{ message.content }}

{% else %}### Response:
{{ message.content }}{{ eos_token }}{% if not loop.last %}

{% endif %}{% endif %}{% endfor %}{% if add_generation_prompt %}### Response:
{% endif %}"""


def encode_chats(
    tokenizer: PreTrainedTokenizerBase, chats: Sequence[Chat], max_length: int, loss_on: LossOn = "completion"
) -> Examples:
    """Token rows of complete conversations, with a label for each token of every answer and its end.

    Answers and the text between them are tokenized separately, so that the model reads the same prompt tokens in
    training as in generation. A row that is longer than `max_length` loses its end; if the text before the first
    answer leaves less than half of the length, the row loses its beginning too.

    Args:
        tokenizer: tokenizer of the model; `PLAIN_TEMPLATE` is used if it has no chat template.
        chats: conversations that end with an answer.
        max_length: tokens of the longest row.
        loss_on: the tokens to train on: those of the answers, or all.

    Raises:
        ModelError: the template rejects a conversation, or renders earlier turns differently once later ones follow.
    """
    rows, truncated = [], []
    for index, chat in enumerate(chats):
        parts = _parts(tokenizer, chat)
        tokens: list[int] = []
        labels: list[int] = []
        for text, is_answer in parts:
            piece = _tokens(tokenizer, text)
            tokens += piece
            labels += piece if is_answer or loss_on == "everything" else [IGNORED] * len(piece)
        if len(tokens) > max_length:
            truncated.append(index)
            before = len(_tokens(tokenizer, parts[0][0]))
            begin = min(max(0, before - max_length // 2), len(tokens) - max_length)
            tokens, labels = tokens[begin : begin + max_length], labels[begin : begin + max_length]
        rows.append({"input_ids": tokens, "attention_mask": [1] * len(tokens), "labels": labels})
    return Examples(rows, frozenset(truncated))


def prompt_of_chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[tuple[str, str]]) -> list[int]:
    """The prompt tokens for an answer to the last message: the row of `encode_chats` up to the answer.

    Raises:
        ModelError: the template rejects the conversation.
    """
    parts = _parts(tokenizer, [*messages, ("assistant", "")])[:-1]
    return [token for text, _ in parts for token in _tokens(tokenizer, text)]


def has_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the model has its own chat template."""
    return bool(tokenizer.chat_template)


def _parts(tokenizer: PreTrainedTokenizerBase, chat: Sequence[tuple[str, str]]) -> list[tuple[str, bool]]:
    """The text of a conversation in pieces, alternating between context (False) and answer (True)."""
    parts, rendered = [], ""
    for number, (role, _) in enumerate(chat):
        if role != "assistant":
            continue
        before_answer = _render(tokenizer, chat[:number], answer_follows=True)
        with_answer = _render(tokenizer, chat[: number + 1], answer_follows=False)
        if not before_answer.startswith(rendered) or not with_answer.startswith(before_answer):
            raise ModelError(
                "the model's chat template renders earlier turns differently once later ones follow, so training"
                " prompts would differ from those of generation; give rows of one turn, or a model with another"
                " template"
            )
        parts += [(before_answer[len(rendered) :], False), (with_answer[len(before_answer) :], True)]
        rendered = with_answer
    return parts


def _render(tokenizer: PreTrainedTokenizerBase, chat: Sequence[tuple[str, str]], *, answer_follows: bool) -> str:
    messages = [{"role": role, "content": text} for role, text in chat]
    template: Any = tokenizer.chat_template or PLAIN_TEMPLATE
    try:
        text = tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=answer_follows
        )
    except Exception as fault:  # jinja2's errors, and whatever a template's own code raises
        raise ModelError(
            f"the model's chat template rejects a conversation ({fault}); leave out the part that it names"
        ) from fault
    return str(text)


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenize(tokenizer, [text], add_special_tokens=False)["input_ids"][0]) if text else []
