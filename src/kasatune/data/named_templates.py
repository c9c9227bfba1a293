"""Named chat templates for models that have none: alpaca, chatml, gemma, llama3 and mistral."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

_EOS = "{{ eos_token }}"


class NamedTemplate(NamedTuple):
    """A chat template whose end of turn depends on the tokenizer.

    Attributes:
        text: Jinja source, with END where an answer ends.
        end: the token that ends an answer; the tokenizer's EOS token for one that lacks it.
    """

    text: str
    end: str

    def render(self, *, has_end: bool) -> str:
        """The Jinja source, with `end` as the end of a turn if `has_end`, else with the EOS token."""
        return self.text.replace("END", self.end if has_end else _EOS)


_ALPACA = """{{ bos_token or '' }}{% for message in messages %}\
{% if message.role == 'system' %}{{ message.content }}

{% elif message.role == 'user' %}### Instruction:
{{ message.content }}

{% else %}### Response:
{{ message.content }}END{% if not loop.last %}

{% endif %}{% endif %}{% endfor %}{% if add_generation_prompt %}### Response:
{% endif %}"""

_CHATML = """{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}END
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

_LLAMA3 = """{{ bos_token or '' }}{% for message in messages %}\
<|start_header_id|>{{ message.role }}<|end_header_id|>

{{ message.content | trim }}END{% endfor %}{% if add_generation_prompt %}\
<|start_header_id|>assistant<|end_header_id|>

{% endif %}"""

# Gemma and Mistral have no system role: a system message begins the first question.
_GEMMA = """{{ bos_token or '' }}{% for message in messages %}\
{% if message.role == 'assistant' %}<start_of_turn>model
{% elif message.role == 'system' or loop.previtem is undefined or loop.previtem.role != 'system' %}<start_of_turn>user
{% endif %}{{ message.content | trim }}{% if message.role == 'system' %}{{ '\\n\\n' }}{% else %}END
{% endif %}{% endfor %}{% if add_generation_prompt %}<start_of_turn>model
{% endif %}"""

_MISTRAL = """{{ bos_token or '' }}{% for message in messages %}\
{% if message.role == 'assistant' %} {{ message.content | trim }}END{% else %}\
{% if loop.previtem is undefined or loop.previtem.role != 'system' %}[INST] {% endif %}{{ message.content }}\
{% if message.role == 'system' %}{{ '\\n\\n' }}{% else %} [/INST]{% endif %}{% endif %}{% endfor %}"""

NAMED_TEMPLATES: Mapping[str, NamedTemplate] = MappingProxyType(
    {
        "alpaca": NamedTemplate(_ALPACA, _EOS),
        "chatml": NamedTemplate(_CHATML, "<|im_end|>"),
        "gemma": NamedTemplate(_GEMMA, "<end_of_turn>"),
        "llama3": NamedTemplate(_LLAMA3, "<|eot_id|>"),
        "mistral": NamedTemplate(_MISTRAL, _EOS),
    }
)
"""By the name in a recipe's `task.template`; "alpaca" is used where a model has no template and none is named."""
