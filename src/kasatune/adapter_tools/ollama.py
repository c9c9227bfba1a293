"""Write a Modelfile for Ollama: base, adapter, prompt template in Go's template language, and parameters."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from kasatune.adapter_tools.resolve import Source, local_base
from kasatune.adapter_tools.tokenizer import load_tokenizer, saved_tokenizer
from kasatune.adapters.gguf_export import FILE
from kasatune.data.chat_template import answer_end, render_chat
from kasatune.data.tasks.mixture_parts import reads_chats
from kasatune.data.tasks.table import TASKS
from kasatune.errors import InputError, ModelError
from kasatune.io.library_noise import quiet
from kasatune.runs.directory import read_recipe

MODELFILE = "Modelfile"
_MARKS = ("kasatune-s", "kasatune-u", "kasatune-a")  # contents that templates leave unchanged


@dataclass(frozen=True)
class Prompt:
    """A prompt in parts: what a template writes around the content of each message.

    Attributes:
        default_system: before the first message of a conversation without a system message.
        system: before and after a system message.
        user: before and after a message of the user.
        assistant: before and after an earlier answer.
        answer: before the answer that the model writes.
    """

    default_system: str
    system: tuple[str, str]
    user: tuple[str, str]
    assistant: tuple[str, str]
    answer: str

    def render(self, chat: list[tuple[str, str]]) -> str:
        """The prompt of a conversation, as the template in a Modelfile renders it."""
        text = "" if any(role == "system" for role, _ in chat) else self.default_system
        for role, content in chat:
            before, after = {"system": self.system, "user": self.user, "assistant": self.assistant}[role]
            text += before + content + after
        return text + self.answer

    def go_template(self) -> str:
        """The same in Go's template language, for Ollama."""
        roles = {"system": self.system, "user": self.user, "assistant": self.assistant}
        tests = [f'{{{{ if eq .Role "{role}" }}}}{_go(b)}{{{{ .Content }}}}{_go(a)}' for role, (b, a) in roles.items()]
        default = f"{{{{ if not .System }}}}{_go(self.default_system)}{{{{ end }}}}" if self.default_system else ""
        messages = "{{ else }}".join(tests) + "{{ end }}" * len(tests)
        return f"{default}{{{{ range .Messages }}}}{messages}{{{{ end }}}}{_go(self.answer)}"


def write_modelfile(source: Source, out: Path) -> None:
    """Write OUT/Modelfile for the adapter.gguf in OUT.

    A run's prompts are written as its training made them, and its decoding as parameters. Ollama reads the base from a
    GGUF file, or converts the safetensors of a folder.

    Raises:
        InputError: the adapter has no tokenizer, or its chat template cannot be written as Ollama's.
    """
    location = local_base(source)
    place = saved_tokenizer(source.adapter, source.run) or location
    with quiet():
        tokenizer = load_tokenizer(place, revision=source.revision, trust_remote_code=source.trust_remote_code)
    if tokenizer is None:
        raise InputError(f"{source.given}: neither the adapter nor its base has a tokenizer; add one to either")
    recipe = None if source.run is None else read_recipe(source.run)
    info = None if recipe is None else TASKS[recipe.task.name]
    is_chat = bool(tokenizer.chat_template) if recipe is None else reads_chats(recipe.task)
    task_prompt = "{}" if info is None or info.prompt is None else info.prompt
    base = (location.file if location.gguf_file else Path(location.path)).absolute()
    lines = [f"FROM {base}", f"ADAPTER ./{FILE}"]
    lines.append(f'TEMPLATE """{_template(tokenizer, task_prompt, is_chat=is_chat)}"""')
    lines += [f"PARAMETER {name} {value}" for name, value in _parameters(tokenizer, is_chat=is_chat)]
    if recipe is not None and recipe.generation is not None:
        lines.append(f"PARAMETER num_predict {recipe.generation.max_new_tokens}")
        lines.append(f"PARAMETER num_ctx {recipe.task.max_length + recipe.generation.max_new_tokens}")
    (out / MODELFILE).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _template(tokenizer: PreTrainedTokenizerBase, task_prompt: str, *, is_chat: bool) -> str:
    before, after = task_prompt.replace("{{", "{").replace("}}", "}").split("{}", 1)
    if not is_chat:
        return f"{_go(before)}{{{{ .Prompt }}}}{_go(after)}"
    prompt = find_prompt(tokenizer)
    user = (prompt.user[0] + before, after + prompt.user[1])
    template = Prompt(prompt.default_system, prompt.system, user, prompt.assistant, prompt.answer).go_template()
    if '"""' in template:
        raise InputError('the chat template writes """, which a Modelfile cannot hold; export to gguf instead')
    return template


def _parameters(tokenizer: PreTrainedTokenizerBase, *, is_chat: bool) -> list[tuple[str, str]]:
    """Greedy decoding, as in kasatune's scores, and the tokens that end an answer."""
    ends = [tokenizer.eos_token]
    end = answer_end(tokenizer) if is_chat else None
    if end is not None and end.token is not None:
        ends.append(str(tokenizer.convert_ids_to_tokens(end.token)))
    stops = [("stop", json.dumps(str(token), ensure_ascii=False)) for token in dict.fromkeys(ends) if token]
    return [("temperature", "0"), ("repeat_penalty", "1"), *stops]


def find_prompt(tokenizer: PreTrainedTokenizerBase) -> Prompt:
    """What the tokenizer's chat template writes around messages, found by rendering conversations.

    Raises:
        InputError: the template depends on more than the roles, so that Ollama's cannot repeat it.
    """
    system, user, assistant = _MARKS
    refused = InputError(
        "the chat template cannot be written for Ollama: it depends on more than the roles of messages; export to gguf "
        "and write a TEMPLATE by hand"
    )
    try:
        alone = render_chat(tokenizer, [("user", user)])
        after_answer = render_chat(tokenizer, [("user", user), ("assistant", assistant), ("user", user)])
    except ModelError as fault:
        raise refused from fault
    middle = after_answer.split(assistant)
    if alone.count(user) != 1 or len(middle) != 2 or after_answer.count(user) != 2:
        raise refused
    first, rest = alone.split(user)
    user_after, before_assistant = _split_at_common(middle[0].split(user)[1], rest)
    assistant_after, user_before = _split_user(middle[1].split(user)[0], first)
    default = first.removesuffix(user_before) if first.endswith(user_before) else first
    answer = rest.removeprefix(user_after)
    around_system = _around_system(tokenizer, system, user, user_before)
    prompt = Prompt(default, around_system, (user_before, user_after), (before_assistant, assistant_after), answer)
    chats: list[list[tuple[str, str]]] = [
        [("user", "one")],
        [("user", "one"), ("assistant", "two"), ("user", "three")],
        [("user", "1"), ("assistant", "2"), ("user", "3"), ("assistant", "4"), ("user", "5")],
    ]
    if around_system != ("", ""):
        chats += [[("system", "zero"), *chat] for chat in chats]
    if any(prompt.render(chat) != render_chat(tokenizer, chat) for chat in chats):
        raise refused
    return prompt


def _split_at_common(text: str, other: str) -> tuple[str, str]:
    """What follows a user's message, and what precedes an answer in the history.

    `text` stands between a message and an earlier answer, `other` between a message and the answer to be written.
    Where both are the same, nothing tells the two parts apart and nothing needs to.
    """
    if text == other:
        return "", text
    length = next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
    return text[:length], text[length:]


def _split_user(text: str, first: str) -> tuple[str, str]:
    """What follows an earlier answer, and what precedes a user's message: the longest common end with `first`."""
    length = 0
    while length < min(len(text), len(first)) and text[-1 - length] == first[-1 - length]:
        length += 1
    return text[: len(text) - length], text[len(text) - length :]


def _around_system(tokenizer: PreTrainedTokenizerBase, system: str, user: str, user_before: str) -> tuple[str, str]:
    """What the template writes around a system message; ("", "") if it rejects or ignores one."""
    try:
        text = render_chat(tokenizer, [("system", system), ("user", user)])
    except ModelError:
        return "", ""
    if text.count(system) != 1:
        return "", ""
    before, after = text.split(system)
    return before, after.split(user)[0].removesuffix(user_before)


def _go(text: str) -> str:
    """A literal text in Go's template language; braces and quotes inside a string of Go."""
    plain = "{{" not in text and text == text.strip(" ")
    return text if plain else f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}"
