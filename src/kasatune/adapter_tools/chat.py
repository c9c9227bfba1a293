"""Chat with a run, an adapter or a base model: prompts as in training, history, and the base model for comparison."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from kasatune.adapter_tools.resolve import ADAPTER_FILE, find_source, load_base_model, local_base
from kasatune.adapter_tools.tokenizer import load_tokenizer, saved_tokenizer
from kasatune.adapters.load import load_adapter
from kasatune.data.chat_template import answer_end, prompt_of_chat
from kasatune.data.prompt_completion import prompt_tokens
from kasatune.data.tasks.mixture_parts import reads_chats
from kasatune.data.tasks.task_info import Prompter, RetrievedPassage
from kasatune.errors import InputError
from kasatune.evaluation.known_tokens import require_known_tokens
from kasatune.evaluation.stream import Sampling, stream_text
from kasatune.evaluation.task_model import TaskModel
from kasatune.io.library_noise import quiet
from kasatune.io.run_layout import ADAPTER, NATIVE, RECIPE
from kasatune.models.device import find_device
from kasatune.models.load import load_base
from kasatune.models.moved_base import with_base
from kasatune.recipes.schema import ModelSection, Recipe, TrainingSection
from kasatune.runs.directory import read_recipe
from kasatune.runs.metrics import read_metrics
from kasatune.weights.usable_positions import usable_positions

Write = Callable[[str], object]


@dataclass(frozen=True)
class ChatModel:
    """A causal language model that answers, and how it was trained to be asked.

    Attributes:
        model: the tuned model, or a base model.
        tokenizer: its tokenizer.
        is_chat: whether messages are asked through the chat template; otherwise each is a prompt to continue.
        is_tuned: whether there is a base model to compare with.
        render: makes the task's prompt of a message.
        prompter: makes it with passages of the task's corpus; None for tasks without retrieval.
        max_length: tokens of the longest prompt in training; None if unknown.
        max_new_tokens: the most tokens of an answer, unless the user asks for another number.
        precision: of the forward pass.
        untuned: loads the base model, for methods that change its weights; None for adapters, which are disabled.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    is_chat: bool
    is_tuned: bool
    render: Callable[[str], str] = str
    prompter: Prompter | None = None
    max_length: int | None = None
    max_new_tokens: int = 256
    precision: str = "float32"
    untuned: Callable[[], nn.Module] | None = None

    def base(self) -> tuple[nn.Module, AbstractContextManager[Any]]:
        """The base model, and a context inside which it is untouched.

        Raises:
            InputError: this is a base model itself.
        """
        if not self.is_tuned:
            raise InputError("--beside compares a tuned model with its base; give a run or an adapter")
        if self.untuned is not None:
            return self.untuned(), nullcontext()
        model: Any = self.model
        return model, model.disable_adapter()


@dataclass
class Conversation:
    """One conversation with a model.

    Attributes:
        chat: the model.
        sampling: how tokens are chosen.
        system: a system message before the first message.
        history: messages and answers so far, as (role, text); of a task with retrieval without the passages.
        passages: passages in the prompt of the last message.
    """

    chat: ChatModel
    sampling: Sampling
    system: str | None = None
    history: list[tuple[str, str]] = field(default_factory=list)
    passages: Sequence[RetrievedPassage] = ()

    def ask(self, message: str, write: Write, *, model: nn.Module | None = None) -> str:
        """Answer a message, passing on each piece of the answer when it is known, and remember both.

        Args:
            message: as the user wrote it.
            write: receives the pieces of the answer.
            model: the model that answers; None for the tuned one.

        Raises:
            InputError: the message is empty, or the model has no embedding for a token.
            ModelError: the chat template rejects the conversation.
        """
        if not message.strip():
            raise InputError("the message is empty; write one")
        chat, answering = self.chat, self.chat.model if model is None else model
        if chat.prompter is None:
            question = remembered = ("user", chat.render(message))
        else:
            retrieved = chat.prompter(message)
            question, remembered, self.passages = ("user", retrieved.text), ("user", message), retrieved.passages
        prompt = self._prompt(answering, question)
        require_known_tokens(answering, chat.tokenizer, [prompt])
        end = answer_end(chat.tokenizer) if chat.is_chat else None
        answer = stream_text(
            answering,
            chat.tokenizer,
            prompt,
            self.sampling,
            write,
            precision=chat.precision,
            end_of_turn=None if end is None else end.token,
        )
        if chat.is_chat:
            self.history += [remembered, ("assistant", answer)]
        return answer

    def _prompt(self, model: nn.Module, question: tuple[str, str]) -> list[int]:
        """The tokens of the conversation so far with the question, without its oldest turns if it is too long.

        A single question that is longer than the prompts of the training loses its beginning, as in `predict`.
        """
        chat, positions = self.chat, usable_positions(model)
        room = None if positions is None else positions - self.sampling.max_new_tokens
        if room is not None and room < 1:
            raise InputError(
                f"--max-new-tokens: {self.sampling.max_new_tokens} received; the model has {positions} positions for "
                "prompt and answer together; give fewer"
            )
        if not chat.is_chat:
            return _cut(prompt_tokens(chat.tokenizer, [question[1]])[0], room, chat.max_length)
        while True:
            prompt = prompt_of_chat(chat.tokenizer, [*self._system(), *self.history, question])
            if not self.history:
                return _cut(prompt, room, chat.max_length)
            if room is None or len(prompt) <= room:
                return prompt
            del self.history[:2]

    def _system(self) -> list[tuple[str, str]]:
        return [("system", self.system)] if self.system is not None else []


def open_chat(given: str, base: str | None = None) -> ChatModel:
    """Load a model to chat with.

    Args:
        given: a run, the directory of an adapter, or a base model (see `find_model`).
        base: where the base model of a run or an adapter is now; None for where they say.

    Raises:
        InputError: there is no such run, adapter or model, or it does not generate text.
    """
    if not given.strip():
        raise InputError("an empty name received; give a run, an adapter or a model")
    directory = Path(given).expanduser()
    if directory.name in (ADAPTER, NATIVE) and (directory.parent / RECIPE).is_file():
        directory = directory.parent
    with quiet():
        if (directory / RECIPE).is_file():
            return _open_run(directory, base)
        if (directory / ADAPTER_FILE).is_file():
            return _open_adapter(directory, base)
        if base is not None:
            raise InputError(f"--base: {base} received; {given} is no run and no adapter; leave it out")
        return _open_model(given)


def _open_run(directory: Path, base: str | None) -> ChatModel:
    recipe, metrics = read_recipe(directory), read_metrics(directory)
    if metrics.get("kind") != "generation" or recipe.generation is None:
        raise InputError(f"{directory}: only language models chat; this run is a {metrics.get('kind')}; use predict")
    task_model = TaskModel.for_saved_run(recipe, None, directory, base=base)
    has_adapter = hasattr(task_model.model, "disable_adapter")
    return ChatModel(
        task_model.model,
        task_model.base.tokenizer,
        is_chat=reads_chats(recipe.task),
        is_tuned=True,
        render=task_model.info.render,
        prompter=task_model.prompter,
        max_length=recipe.task.max_length,
        max_new_tokens=recipe.generation.max_new_tokens,
        precision=recipe.training.precision,
        untuned=None if has_adapter else _Untuned(with_base(recipe, base)),
    )


class _Untuned:
    """Loads the base of a run once.

    Args:
        recipe: its recipe.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._model: nn.Module | None = None

    def __call__(self) -> nn.Module:
        if self._model is None:
            with quiet():
                self._model = TaskModel.for_base(self._recipe, None).model
        return self._model


def _open_adapter(directory: Path, base: str | None) -> ChatModel:
    source = find_source(directory, base)
    if source.config.get("task_type") not in ("CAUSAL_LM", None):
        raise InputError(f"{directory}: only language models chat; this adapter is of {source.config['task_type']}")
    model = load_adapter(load_base_model(source), source.adapter)
    if not hasattr(model, "generate"):
        raise InputError(f"{directory}: its model does not generate text; give an adapter of a causal language model")
    place = saved_tokenizer(source.adapter, None) or local_base(source)
    tokenizer = load_tokenizer(place, revision=source.revision, trust_remote_code=source.trust_remote_code)
    if tokenizer is None:
        raise InputError(f"{directory}: neither the adapter nor {source.base_name} has a tokenizer; add one to either")
    model = model.to(find_device(TrainingSection.model_validate({})))
    return ChatModel(model, tokenizer, is_chat=bool(tokenizer.chat_template), is_tuned=True)


def _open_model(name: str) -> ChatModel:
    device = find_device(TrainingSection.model_validate({}))
    section = ModelSection.model_validate({"name": name, "dtype": "float32" if device.type == "cpu" else "bfloat16"})
    loaded = load_base(section, kind="generation", label_names=None, seed=0, max_length=2)
    is_chat = bool(loaded.tokenizer.chat_template)
    model: Any = loaded.model
    return ChatModel(model.to(device), loaded.tokenizer, is_chat=is_chat, is_tuned=False)


def _cut(prompt: list[int], room: int | None, max_length: int | None) -> list[int]:
    limits = [limit for limit in (room, max_length) if limit is not None]
    return prompt[-min(limits) :] if limits else prompt


def ask_both(
    tuned: Conversation, untuned: Conversation, message: str, write: Callable[[int, str], object]
) -> Sequence[str]:
    """Answer a message with the base model and then with the tuned one.

    Args:
        tuned: conversation with the tuned model.
        untuned: conversation with the base model, which has answers of its own in its history.
        message: as the user wrote it.
        write: receives each piece of an answer with the number of its model: 0 for the base, 1 for the tuned one.

    Returns:
        The answer of the base and that of the tuned model.
    """
    model, context = tuned.chat.base()
    with context:
        first = untuned.ask(message, lambda piece: write(0, piece), model=model)
    return first, tuned.ask(message, lambda piece: write(1, piece))
