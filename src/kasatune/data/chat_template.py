"""Tokenize conversations with the model's chat template, with labels for the tokens of the answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from kasatune.data.named_templates import NAMED_TEMPLATES
from kasatune.data.prompt_completion import IGNORED, LossOn
from kasatune.data.readers.conversations import Chat, Unlearnt
from kasatune.data.tokenize import Examples, tokenize
from kasatune.errors import DataError, ModelError

PLAIN_TEMPLATE = NAMED_TEMPLATES["alpaca"].render(has_end=True)
"""The template of models that have none, unless a recipe names another: the headings of Alpaca's prompt."""

_DEFAULT = "default"  # name under which transformers looks for one of several templates
_PROBES = ("kasatune", "another")
"""Answers without a common end, to see what a template writes after one, also if it changes the answer's text."""


class AnswerEnd(NamedTuple):
    """What a chat template writes after an answer.

    Attributes:
        text: everything up to the end of the conversation.
        token: the first special token in it, at which an answer ends; None if there is none.
    """

    text: str
    token: int | None


def set_chat_template(tokenizer: PreTrainedTokenizerBase, name: str | None = None) -> str:
    """Make the template that a run uses the tokenizer's default, so that whoever loads the saved tokenizer uses it too.

    Without a name that is the model's own, `PLAIN_TEMPLATE` if it has none, and of several the one named "default", or
    the only one. A named template whose end-of-turn token the tokenizer lacks ends an answer with the EOS token.

    Args:
        tokenizer: tokenizer of the model; it is changed.
        name: one of `NAMED_TEMPLATES`, or of the templates of a tokenizer that has several.

    Returns:
        A sentence that says which template is used, where it is not the model's only or default one; otherwise "".

    Raises:
        ModelError: there is no template of that name, or the model has several templates and none is named "default".
    """
    own: Any = tokenizer.chat_template
    several = own if isinstance(own, dict) else {}
    if name is None:
        template, note = _template(tokenizer), ""
        if not own:
            note = "the model has no chat template: alpaca is used; task.template names another"
    elif name in several:
        template, note = several[name], f"the model's chat template {name!r} is used"
    elif name in NAMED_TEMPLATES:
        named = NAMED_TEMPLATES[name]
        template = named.render(has_end=_is_one_token(tokenizer, named.end))
        note = f"the chat template {name} is used{' instead of that of the model' if own else ''}"
    else:
        known = ", ".join([*NAMED_TEMPLATES, *several])
        raise ModelError(f"task.template: {name!r} received; choose one of {known}, or leave it out")
    tokenizer.chat_template = {**several, _DEFAULT: template} if several else template
    return note


def answer_end(tokenizer: PreTrainedTokenizerBase) -> AnswerEnd | None:
    """What the chat template writes after an answer; None if its text does not depend on the answer.

    Raises:
        ModelError: see `set_chat_template`.
    """
    template = _template(tokenizer)
    for chat in ([("user", "question")], [("system", "rules"), ("user", "question")]):
        try:
            texts = [
                _render(tokenizer, template, [*chat, ("assistant", probe)], answer_follows=False) for probe in _PROBES
            ]
        except ModelError:  # the template rejects a conversation without, or with, a system message
            continue
        if texts[0] != texts[1]:
            after = _common_end(*texts)
            special = _special_tokens(tokenizer)
            return AnswerEnd(after, next((token for token in _tokens(tokenizer, after) if token in special), None))
    return None


def _common_end(first: str, second: str) -> str:
    """The longest text that both end with."""
    length = 0
    while first[-1 - length :] == second[-1 - length :]:  # they differ, so it ends
        length += 1
    return first[len(first) - length :]


def encode_chats(
    tokenizer: PreTrainedTokenizerBase, chats: Sequence[Chat], max_length: int, loss_on: LossOn = "completion"
) -> Examples:
    """Token rows of complete conversations, with a label for each token of every answer and its end.

    Answers and the text between them are tokenized separately, so that the model reads the same prompt tokens in
    training as in generation. Where the template writes no special token after an answer, the tokenizer's EOS token
    ends the last answer of a row, in place of the text that the template writes there. A row that is longer than
    `max_length` loses its end; if the text before the first answer leaves less than half of the length, the row loses
    its beginning too.

    Args:
        tokenizer: tokenizer of the model; `PLAIN_TEMPLATE` is used if it has no chat template.
        chats: conversations that end with an answer.
        max_length: tokens of the longest row.
        loss_on: the tokens to train on: those of every answer ("completion"), of the last one, or all; always without
            answers that are `Unlearnt`.

    Raises:
        DataError: only last answers are learnt, and a row's last one is `Unlearnt`.
        ModelError: the template rejects a conversation, or renders earlier turns differently once later ones follow;
            or see `set_chat_template`.
    """
    rows, truncated = [], []
    split_parts = _PartsOfChats(tokenizer)
    for index, chat in enumerate(chats):
        parts = split_parts(chat)
        unlearnt = _unlearnt(chat)
        if loss_on == "last-answer" and len(parts) in unlearnt:
            raise DataError(
                f"conversation {index + 1}: its last answer has the weight 0, and task.loss_on: last-answer learns no"
                " other; leave the row out, or use task.loss_on: completion"
            )
        tokens: list[int] = []
        labels: list[int] = []
        for number, (text, is_answer) in enumerate(parts, start=1):
            piece = _tokens(tokenizer, text)
            is_learnt = is_answer and (loss_on != "last-answer" or number == len(parts))
            is_learnt = (is_learnt or loss_on == "everything") and number not in unlearnt
            tokens += piece
            labels += piece if is_learnt else [IGNORED] * len(piece)
        if split_parts.ends_without_token:
            tokens.append(int(tokenizer.eos_token_id))  # pyright: ignore[reportArgumentType] - load_base requires it
            labels.append(IGNORED if len(parts) in unlearnt else tokens[-1])
        if len(tokens) > max_length:
            truncated.append(index)
            before = len(_tokens(tokenizer, parts[0][0]))
            begin = min(max(0, before - max_length // 2), len(tokens) - max_length)
            tokens, labels = tokens[begin : begin + max_length], labels[begin : begin + max_length]
        rows.append({"input_ids": tokens, "attention_mask": [1] * len(tokens), "labels": labels})
    return Examples(rows, frozenset(truncated))


def _unlearnt(chat: Chat) -> set[int]:
    """The numbers of the pieces, see `_PartsOfChats`, of answers that are `Unlearnt`; the first answer is piece 2."""
    answers = [text for role, text in chat if role == "assistant"]
    return {2 * number for number, text in enumerate(answers, start=1) if isinstance(text, Unlearnt)}


def split_last_answer(tokenizer: PreTrainedTokenizerBase, chats: Sequence[Chat]) -> list[tuple[list[int], list[int]]]:
    """The tokens before the last answer of each conversation, and those of that answer with its end.

    Tokenized and ended as by `encode_chats`; a tokenizer without an EOS token ends no answer.

    Raises:
        ModelError: see `encode_chats`.
    """
    split_parts = _PartsOfChats(tokenizer)
    rows = []
    for chat in chats:
        *before, (answer, _) = split_parts(chat)
        tokens = _tokens(tokenizer, answer)
        end: Any = tokenizer.eos_token_id
        if split_parts.ends_without_token and end is not None:
            tokens.append(int(end))
        rows.append(([token for text, _ in before for token in _tokens(tokenizer, text)], tokens))
    return rows


def prompt_of_chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[tuple[str, str]]) -> list[int]:
    """The prompt tokens for an answer to the last message, tokenized as one text, as a server does.

    For one turn it is the row of `encode_chats` up to the answer; for several, tokenizers that treat the beginning of a
    text in another way than its middle may give other tokens where an earlier answer begins or ends.

    Raises:
        ModelError: the template rejects the conversation; or see `set_chat_template`.
    """
    parts = _PartsOfChats(tokenizer)([*messages, ("assistant", "")])[:-1]
    return _tokens(tokenizer, "".join(text for text, _ in parts))


def render_chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[tuple[str, str]]) -> str:
    """The text of the prompt for an answer to the last message.

    Raises:
        ModelError: the template rejects the conversation; or see `set_chat_template`.
    """
    return _render(tokenizer, _template(tokenizer), messages, answer_follows=True)


class _PartsOfChats:
    """Splits conversations into pieces of text, alternating between context (False) and answer (True).

    What the template writes after an answer belongs to the answer if it has an end-of-turn token, else to the context.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._template = _template(tokenizer)
        end = answer_end(tokenizer)
        self.ends_without_token = end is not None and end.token is None
        self._text_after = end.text if end is not None and end.token is None else ""

    def __call__(self, chat: Sequence[tuple[str, str]]) -> list[tuple[str, bool]]:
        parts, rendered = [], ""
        for number, (role, _) in enumerate(chat):
            if role != "assistant":
                continue
            before_answer = self._render(chat[:number], answer_follows=True)
            with_answer = self._render(chat[: number + 1], answer_follows=False)
            with_answer = with_answer.removesuffix(self._text_after)
            if not before_answer.startswith(rendered) or not with_answer.startswith(before_answer):
                raise ModelError(
                    "the model's chat template renders earlier turns differently once later ones follow, so training"
                    " prompts would differ from those of generation; give rows of one turn, or a model with another"
                    " template"
                )
            parts += [(before_answer[len(rendered) :], False), (with_answer[len(before_answer) :], True)]
            rendered = with_answer
        return parts

    def _render(self, chat: Sequence[tuple[str, str]], *, answer_follows: bool) -> str:
        return _render(self._tokenizer, self._template, chat, answer_follows=answer_follows)


def _template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of the template that runs use; see `set_chat_template`."""
    own: Any = tokenizer.chat_template
    if not isinstance(own, dict):
        return own or PLAIN_TEMPLATE
    if len(own) == 1:
        return next(iter(own.values()))
    if own and _DEFAULT not in own:
        raise ModelError(
            f"model.name: the tokenizer has {len(own)} chat templates, {', '.join(sorted(own))}, and none of them is"
            f" named {_DEFAULT!r}; name the one to use as task.template"
        )
    return own.get(_DEFAULT, PLAIN_TEMPLATE)


def _render(
    tokenizer: PreTrainedTokenizerBase, template: str, chat: Sequence[tuple[str, str]], *, answer_follows: bool
) -> str:
    messages = [{"role": role, "content": text} for role, text in chat]
    try:
        text = tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=answer_follows
        )
    except Exception as fault:  # jinja2's errors, and whatever a template's own code raises
        raise ModelError(
            f"the model's chat template rejects a conversation ({fault}); leave out the part that it names"
        ) from fault
    return str(text)


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Tokens that are no text: special tokens, and added tokens other than blanks; not the unknown token."""
    added = {
        number for number, token in tokenizer.added_tokens_decoder.items() if token.special or token.content.strip()
    }
    ids: Any = tokenizer  # transformers types the ids of special tokens as more than integers
    unknown = {ids.unk_token_id} - {ids.eos_token_id}
    return (added | set(tokenizer.all_special_ids)) - unknown


def _is_one_token(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    number = tokenizer.get_vocab().get(text)
    return number is not None and _tokens(tokenizer, text) == [number]


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenize(tokenizer, [text], add_special_tokens=False)["input_ids"][0]) if text else []
