"""Chat templates: labels of answers, prompts of generation, and templates that are refused."""

import json
import shutil

import pytest
from transformers import AutoTokenizer

from kasatune.data.chat_template import answer_end, encode_chats, prompt_of_chat, set_chat_template
from kasatune.data.prompt_completion import IGNORED
from kasatune.data.readers.conversations import Unlearnt
from kasatune.errors import DataError, ModelError

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %} say {{ m.content }} : {% elif m.role == 'system' %} # "
    "{{ m.content }} {% else %}{{ m.content }} </s> {% endif %}{% endfor %}"
)
ONE = (("user", "red blue"), ("assistant", "one two"))
TWO = (("system", "cafe"), *ONE, ("user", "green"), ("assistant", "three"))


@pytest.fixture
def tokenizer(llama):
    found = AutoTokenizer.from_pretrained(llama)
    found.chat_template = TEMPLATE
    return found


def read(tokenizer, ids):
    return tokenizer.decode(ids)


def learnt(tokenizer, row):
    return tokenizer.decode([label for label in row["labels"] if label != IGNORED])


def test_only_answers_and_their_ends_have_labels(tokenizer):
    one, two = encode_chats(tokenizer, [ONE, TWO], 64).rows
    assert read(tokenizer, one["input_ids"]) == "say red blue : one two </s>"
    assert learnt(tokenizer, one) == "one two </s>"
    assert read(tokenizer, two["input_ids"]) == "# cafe say red blue : one two </s> say green : three </s>"
    assert learnt(tokenizer, two) == "one two </s> three </s>"
    assert [
        IGNORED if label == IGNORED else token for token, label in zip(two["input_ids"], two["labels"], strict=True)
    ] == two["labels"]
    everything = encode_chats(tokenizer, [TWO], 64, "everything").rows[0]
    assert everything["labels"] == everything["input_ids"] == two["input_ids"]


def test_generation_prompt_equals_the_training_row_before_the_answer(tokenizer):
    row = encode_chats(tokenizer, [TWO], 64).rows[0]
    for messages in (TWO[:2], TWO[:4]):
        asked = prompt_of_chat(tokenizer, messages)
        assert row["input_ids"][: len(asked)] == asked and row["labels"][len(asked) - 1] == IGNORED
        assert row["labels"][len(asked)] != IGNORED


def test_plain_template_for_models_without_chat_template(tokenizer):
    tokenizer.chat_template = None
    row = encode_chats(tokenizer, [TWO], 64).rows[0]
    text = read(tokenizer, row["input_ids"])
    assert text.startswith("<s> cafe ### <unk> red blue ### <unk> one two</s>") or "one two" in text
    assert row["input_ids"][0] == tokenizer.bos_token_id and row["input_ids"].count(tokenizer.bos_token_id) == 1
    asked = prompt_of_chat(tokenizer, TWO[:4])
    assert row["input_ids"][: len(asked)] == asked


def test_truncated_row_still_has_labels(tokenizer):
    long = (("user", "red " * 30), ("assistant", "one two three one"))
    examples = encode_chats(tokenizer, [ONE, long, (ONE[0], ("assistant", "one " * 30))], 12)
    assert examples.truncated == {1, 2} and [len(row["input_ids"]) for row in examples.rows] == [7, 12, 12]
    assert learnt(tokenizer, examples.rows[1]) == "one two three one </s>"
    assert learnt(tokenizer, examples.rows[2]) == "one " * 7 + "one"
    assert read(tokenizer, examples.rows[2]["input_ids"]).startswith("say red blue :")


def test_error_of_a_rejecting_template_is_reported(tokenizer):
    tokenizer.chat_template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}x"
    with pytest.raises(ModelError, match="no system role"):
        encode_chats(tokenizer, [TWO], 64)


def test_template_that_rewrites_earlier_turns_is_refused(tokenizer):
    tokenizer.chat_template = (
        "{% for m in messages %}{% if loop.last or m.role == 'user' %}{{ m.content }} {% endif %}{% endfor %}"
    )
    assert encode_chats(tokenizer, [ONE], 64).rows
    with pytest.raises(ModelError, match="earlier turns"):
        encode_chats(tokenizer, [TWO], 64)


OTHER = "{% for m in messages %}{{ m.content }} # {% endfor %}"
NO_END = (
    "{% for m in messages %}{% if m.role == 'user' %} say {{ m.content }} : {% else %}{{ m.content }} # "
    "{% endif %}{% endfor %}"
)
SHORT = (("user", "red"), ("assistant", "one"), ("user", "blue"), ("assistant", "two"))


def test_of_several_templates_the_default_or_the_only_one_is_used(tokenizer):
    expected = encode_chats(tokenizer, [ONE], 64).rows
    tokenizer.chat_template = {"tools": OTHER, "default": TEMPLATE}
    assert encode_chats(tokenizer, [ONE], 64).rows == expected
    tokenizer.chat_template = {"chat": TEMPLATE}
    assert encode_chats(tokenizer, [ONE], 64).rows == expected
    asked = prompt_of_chat(tokenizer, ONE[:1])
    set_chat_template(tokenizer)
    shown = tokenizer.apply_chat_template([{"role": "user", "content": "red blue"}], return_dict=False)
    assert tokenizer.chat_template == {"chat": TEMPLATE, "default": TEMPLATE} and shown == asked
    tokenizer.chat_template = {"rag": OTHER, "tools": TEMPLATE}
    with pytest.raises(ModelError, match="2 chat templates, rag, tools, and none of them is named 'default'"):
        encode_chats(tokenizer, [ONE], 64)


@pytest.mark.parametrize("in_folder", [False, True])
def test_templates_in_a_list_and_in_a_folder_are_read(tokenizer, in_folder, tmp_path):
    expected = encode_chats(tokenizer, [ONE], 64).rows
    tokenizer.chat_template = {"default": TEMPLATE, "tools": OTHER}
    tokenizer.save_pretrained(tmp_path)
    if not in_folder:
        (tmp_path / "chat_template.jinja").unlink()
        shutil.rmtree(tmp_path / "additional_chat_templates")
        config = json.loads((tmp_path / "tokenizer_config.json").read_text())
        config["chat_template"] = [{"name": "tools", "template": OTHER}, {"name": "default", "template": TEMPLATE}]
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert set(loaded.chat_template) == {"default", "tools"}
    assert encode_chats(loaded, [ONE], 64).rows == expected


def test_an_answer_ends_at_the_first_special_token_of_the_template(tokenizer):
    assert answer_end(tokenizer) == (" </s> ", tokenizer.eos_token_id)
    tokenizer.chat_template = TEMPLATE.replace("</s>", "<s> #")
    assert answer_end(tokenizer) == (" <s> # ", tokenizer.bos_token_id)
    tokenizer.add_tokens(["<|end|>", "  "])
    tokenizer.chat_template = TEMPLATE.replace("</s>", "  <|end|>")
    assert answer_end(tokenizer).token == tokenizer.convert_tokens_to_ids("<|end|>")


def test_where_the_template_has_no_end_of_turn_the_eos_token_ends_the_last_answer(tokenizer):
    tokenizer.chat_template = NO_END
    assert answer_end(tokenizer) == (" # ", None)
    row = encode_chats(tokenizer, [SHORT], 64).rows[0]
    assert read(tokenizer, row["input_ids"]) == "say red : one # say blue : two </s>"
    assert [tokenizer.decode([label]) for label in row["labels"] if label != IGNORED] == ["one", "two", "</s>"]
    asked = prompt_of_chat(tokenizer, SHORT[:3])
    assert row["input_ids"][: len(asked)] == asked and len(row["input_ids"]) == len(asked) + 2


def test_the_end_is_found_where_a_template_wants_a_system_message(tokenizer):
    tokenizer.chat_template = "{% if messages[0].role != 'system' %}{{ raise_exception('no') }}{% endif %}" + TEMPLATE
    assert answer_end(tokenizer).token == tokenizer.eos_token_id
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    assert answer_end(tokenizer) is None
    tokenizer.chat_template = "say"
    assert answer_end(tokenizer) is None


def test_the_end_is_found_where_a_template_changes_the_text_of_answers(tokenizer):
    tokenizer.chat_template = TEMPLATE.replace("{{ m.content }}", "{{ m.content | upper | reverse }}")
    assert tokenizer.chat_template != TEMPLATE
    assert answer_end(tokenizer) == (" </s> ", tokenizer.eos_token_id)
    tokenizer.chat_template = NO_END.replace("{{ m.content }}", "{{ m.content | upper }}")
    assert encode_chats(tokenizer, [ONE], 64).rows[0]["labels"][-1] == tokenizer.eos_token_id


WEIGHTED = (("user", "red"), ("assistant", Unlearnt("one two")), ("user", "green"), ("assistant", "three"))


@pytest.mark.parametrize("loss_on", ["completion", "everything", "last-answer"])
def test_an_answer_of_weight_0_and_its_end_are_read_but_not_learnt(tokenizer, loss_on):
    row = encode_chats(tokenizer, [WEIGHTED], 64, loss_on).rows[0]
    assert read(tokenizer, row["input_ids"]) == "say red : one two </s> say green : three </s>"
    expected = "say red : say green : three </s>" if loss_on == "everything" else "three </s>"
    assert learnt(tokenizer, row) == expected


def test_the_end_after_a_last_answer_of_weight_0_is_not_learnt(tokenizer):
    tokenizer.chat_template = None  # the EOS token stands for the end of turn
    chat = (*TWO[1:4], ("assistant", Unlearnt("three")))
    row = encode_chats(tokenizer, [chat], 64).rows[0]
    assert row["input_ids"][-1] == tokenizer.eos_token_id
    assert row["labels"][-1] == IGNORED
    assert learnt(tokenizer, row).split()[:2] == ["one", "two"]


def test_a_last_answer_of_weight_0_leaves_nothing_to_learn_from_last_answers(tokenizer):
    chat = (*TWO[1:4], ("assistant", Unlearnt("three")))
    with pytest.raises(DataError, match=r"conversation 2: its last answer has the weight 0, and task\.loss_on"):
        encode_chats(tokenizer, [ONE, chat], 64, "last-answer")


def test_rows_that_learn_other_answers_have_another_checksum():
    from kasatune.data.tasks.dataset import ChatRows, rows_sha256

    plain = tuple((role, str(text)) for role, text in WEIGHTED)
    sums = {rows_sha256({"train": ChatRows.of([chat])}) for chat in (WEIGHTED, plain)}
    assert len(sums) == 2
