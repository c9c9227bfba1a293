"""Chat templates that a recipe names: what they render, their ends of turn, and the choice among them."""

import pytest
from transformers import AutoTokenizer

from kasatune.data.chat_template import answer_end, encode_chats, prompt_of_chat, set_chat_template
from kasatune.data.named_templates import NAMED_TEMPLATES
from kasatune.data.prompt_completion import IGNORED
from kasatune.errors import ModelError, RecipeError
from kasatune.recipes.schema import Recipe

CHAT = (("system", "cafe"), ("user", "red"), ("assistant", "one"), ("user", "blue"), ("assistant", "two"))
RENDERED = {
    "alpaca": "<s>cafe\n\n### Instruction:\nred\n\n### Response:\none</s>\n### Instruction:\nblue\n\n### Response:\n",
    "chatml": "<|im_start|>system\ncafe<|im_end|>\n<|im_start|>user\nred<|im_end|>\n<|im_start|>assistant\n"
    "one<|im_end|>\n<|im_start|>user\nblue<|im_end|>\n<|im_start|>assistant\n",
    "gemma": "<s><start_of_turn>user\ncafe\n\nred<end_of_turn>\n<start_of_turn>model\none<end_of_turn>\n"
    "<start_of_turn>user\nblue<end_of_turn>\n<start_of_turn>model\n",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\ncafe<|eot_id|><|start_header_id|>user<|end_header_id|>"
    "\n\nred<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\none<|eot_id|><|start_header_id|>user"
    "<|end_header_id|>\n\nblue<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s>[INST] cafe\n\nred [/INST] one</s>[INST] blue [/INST]",
}


@pytest.fixture
def tokenizer(llama):
    return AutoTokenizer.from_pretrained(llama)


@pytest.mark.parametrize("name", NAMED_TEMPLATES)
def test_a_named_template_asks_in_its_form_and_ends_with_its_token(tokenizer, name):
    end = NAMED_TEMPLATES[name].end
    if not end.startswith("{{"):
        tokenizer.add_special_tokens({"additional_special_tokens": [end]})
    assert set_chat_template(tokenizer, name) == f"the chat template {name} is used"
    messages = [{"role": role, "content": text} for role, text in CHAT[:-1]]
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) == RENDERED[name]
    ends = tokenizer.eos_token if end.startswith("{{") else end
    assert answer_end(tokenizer).token == tokenizer.convert_tokens_to_ids(ends)
    row = encode_chats(tokenizer, [CHAT], 64).rows[0]
    assert row["input_ids"][: len(prompt_of_chat(tokenizer, CHAT[:-1]))] == prompt_of_chat(tokenizer, CHAT[:-1])


@pytest.mark.parametrize("name", ["chatml", "gemma", "llama3"])
def test_a_tokenizer_without_the_token_ends_with_its_eos_token(tokenizer, name):
    set_chat_template(tokenizer, name)
    assert answer_end(tokenizer).token == tokenizer.eos_token_id
    assert NAMED_TEMPLATES[name].end not in tokenizer.chat_template


def test_the_unknown_token_is_no_end_of_turn(tokenizer):
    tokenizer.chat_template = NAMED_TEMPLATES["chatml"].render(has_end=True)
    assert answer_end(tokenizer) == ("<|im_end|>\n", None)


def test_a_template_is_chosen_by_name_and_others_are_refused(tokenizer):
    assert "alpaca is used; task.template names another" in set_chat_template(tokenizer)
    tokenizer.chat_template = {"rag": "rag", "tools": "tools"}
    with pytest.raises(ModelError, match=r"task\.template: 'chat' received; choose one of alpaca, .*, rag, tools"):
        set_chat_template(tokenizer, "chat")
    assert set_chat_template(tokenizer, "rag") == "the model's chat template 'rag' is used"
    assert tokenizer.chat_template == {"rag": "rag", "tools": "tools", "default": "rag"}
    tokenizer.chat_template = "own"
    assert set_chat_template(tokenizer) == "" and tokenizer.chat_template == "own"
    assert "instead of that of the model" in set_chat_template(tokenizer, "chatml")


def test_the_last_answer_alone_can_be_learnt(tokenizer):
    set_chat_template(tokenizer, "alpaca")
    row = encode_chats(tokenizer, [CHAT], 64, "last-answer").rows[0]
    assert tokenizer.decode([label for label in row["labels"] if label != IGNORED]) == "two </s>"


def test_a_template_belongs_to_conversations_and_is_written_only_if_set():
    with pytest.raises(RecipeError, match=r"task\.template: \"chatml\" received; glue/rte has no conversations"):
        Recipe.model_validate({"model": {"name": "m"}, "task": {"name": "glue/rte", "template": "chatml"}})
    task = {"name": "instruction", "train": "a.json", "validation": 0.5}
    for template, written in (({}, False), ({"template": "chatml"}, True)):
        recipe = Recipe.model_validate({"model": {"name": "m"}, "task": {**task, **template}})
        assert ("template" in recipe.model_dump()["task"]) is written
