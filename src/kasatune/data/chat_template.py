"""Conversations as a causal language model reads them: through its chat template, learnt where the model speaks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from kasatune.data.prompt_completion import IGNORED, LossOn
from kasatune.data.readers.conversations import Chat
from kasatune.data.tokenize import Examples
from kasatune.errors import ModelError

# For models without a template of their own: the headings of Alpaca's prompt.
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
    """Token rows of whole conversations, with a label for each token of every answer and of its end.

    Answers and what stands between them are tokenized apart, so that a model reads exactly the tokens in training that
    it is given when it is asked. A row that is longer than `max_length` loses its end; where what stands before the
    first answer leaves less than half of the length, the row loses its beginning too.

    Args:
        tokenizer: of the model; without a chat template, `PLAIN_TEMPLATE` is its.
        chats: conversations that end with an answer.
        max_length: tokens of the longest row.
        loss_on: which tokens are learnt: those of answers, or every one.

    Raises:
        ModelError: the template refuses a conversation, or changes earlier turns when a later one follows.
    """
    rows, long = [], []
    for index, chat in enumerate(chats):
        parts = _parts(tokenizer, chat)
        tokens: list[int] = []
        labels: list[int] = []
        for text, learnt in parts:
            piece = _tokens(tokenizer, text)
            tokens += piece
            labels += piece if learnt or loss_on == "everything" else [IGNORED] * len(piece)
        if len(tokens) > max_length:
            long.append(index)
            before = len(_tokens(tokenizer, parts[0][0]))
            begin = min(max(0, before - max_length // 2), len(tokens) - max_length)
            tokens, labels = tokens[begin : begin + max_length], labels[begin : begin + max_length]
        rows.append({"input_ids": tokens, "attention_mask": [1] * len(tokens), "labels": labels})
    return Examples(rows, frozenset(long))


def prompt_of_chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[tuple[str, str]]) -> list[int]:
    """The tokens that a model is given to answer the last message: the row of `encode_chats` up to the answer.

    Raises:
        ModelError: the template refuses the conversation.
    """
    parts = _parts(tokenizer, [*messages, ("assistant", "")])[:-1]
    return [token for text, _ in parts for token in _tokens(tokenizer, text)]


def has_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the model brings a chat template of its own."""
    return bool(tokenizer.chat_template)


def _parts(tokenizer: PreTrainedTokenizerBase, chat: Sequence[tuple[str, str]]) -> list[tuple[str, bool]]:
    """The text of a conversation cut into what is read (False) and what is learnt (True), in turn."""
    parts, done = [], ""
    for number, (role, _) in enumerate(chat):
        if role != "assistant":
            continue
        asked = _render(tokenizer, chat[:number], answer_follows=True)
        answered = _render(tokenizer, chat[: number + 1], answer_follows=False)
        if not asked.startswith(done) or not answered.startswith(asked):
            raise ModelError(
                "the model's chat template writes earlier turns differently once later ones follow, so that what is"
                " learnt is not what is asked; give rows of one turn, or a model with another template"
            )
        parts += [(asked[len(done) :], False), (answered[len(asked) :], True)]
        done = answered
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
            f"the model's chat template refuses a conversation ({fault}); leave out what it names"
        ) from fault
    return str(text)


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) if text else []
