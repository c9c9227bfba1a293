"""Modelfiles for Ollama: prompts as the chat template makes them, and what cannot be written is refused."""

from __future__ import annotations

import pytest

from kasatune.adapter_tools.ollama import find_prompt
from kasatune.data.chat_template import PLAIN_TEMPLATE, render_chat
from kasatune.errors import InputError
from tests.text_toys import save_tokenizer

CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nYou are kind.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}<s>[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}</s>{% else %}{{ raise_exception('no system') }}{% endif %}"
    "{% endfor %}"
)
COUNTING = "{% for m in messages %}{{ loop.index }} {{ m.role }}: {{ m.content }}\n{% endfor %}"


@pytest.fixture
def tokenizer(tmp_path):
    return save_tokenizer(tmp_path)


@pytest.mark.parametrize("template", [CHATML, LLAMA2, PLAIN_TEMPLATE])
def test_the_parts_of_a_template_render_its_prompts(tokenizer, template):
    tokenizer.chat_template = template
    prompt = find_prompt(tokenizer)
    chat = [("user", "a b"), ("assistant", "c"), ("user", "d"), ("assistant", "e"), ("user", "f")]
    assert prompt.render(chat) == render_chat(tokenizer, chat)


def test_the_template_of_go_names_each_role(tokenizer):
    tokenizer.chat_template = CHATML
    template = find_prompt(tokenizer).go_template()
    assert template.startswith("{{ if not .System }}<|im_start|>system\nYou are kind.")
    assert all(f'{{{{ if eq .Role "{role}" }}}}' in template for role in ("system", "user", "assistant"))
    assert template.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert template.count("{{ if") + template.count("{{ range") == template.count("{{ end }}")


def test_a_template_that_counts_turns_is_refused(tokenizer):
    tokenizer.chat_template = COUNTING
    with pytest.raises(InputError, match="cannot be written for Ollama"):
        find_prompt(tokenizer)
