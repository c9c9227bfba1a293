"""Keys of other trainers in a recipe: the error names ours, and every translation names a key that exists."""

import pytest

from kasatune.errors import RecipeError
from kasatune.methods.table import METHODS, canonical_name
from kasatune.recipes.foreign_keys import FOREIGN_KEYS, NOTHING
from kasatune.recipes.schema import SECTIONS, Recipe

KEYS = [(library, key) for library, keys in FOREIGN_KEYS.items() for key in keys]


@pytest.mark.parametrize(("library", "key"), KEYS)
def test_a_translation_names_a_key_that_exists_and_is_none_itself(library, key):
    translation = FOREIGN_KEYS[library][key]
    if translation.key != NOTHING:
        place, _, value = translation.key.partition(": ")
        section, _, name = place.partition(".")
        assert place == "output" or name in SECTIONS[section].model_fields
        if place == "method.name" and value:
            assert canonical_name(value) in METHODS
    assert not any(key in model.model_fields for model in SECTIONS.values()) or key == "adapter"  # of axolotl: a method


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"method": {"lora_rank": 4}}, "method.lora_rank: not a key of method; write method.r"),
        ({"lora_rank": 4}, "lora_rank: not a key of a recipe; write method.r"),
        ({"training": {"lr": 1}}, "training.lr: not a key of training; write training.learning_rate"),
        (
            {"training": {"per_device_train_batch_size": 4}},
            "write training.batch_size (examples per optimizer step, over all devices and accumulated pieces)",
        ),
        ({"Load_In_4bit": True}, "write model.quantization: nf4"),
        ({"adapter": "lora"}, "write method.name (lora, kasa and others; model.adapter is one to continue)"),
        ({"adapter_name_or_path": "a"}, "write model.adapter (the run or adapter that training continues from)"),
        ({"training": {"logging_steps": 1}}, "leave it out: every step is in history.jsonl and report.html"),
        ({"modules_to_save": ["x"]}, "leave it out: a new head is always trained and saved"),
        ({"bachsize": 4}, "bachsize: not a section of a recipe; did you mean training.batch_size?"),
        ({"task": {"name": "demo", "learning_rat": 4}}, "did you mean training.learning_rate?"),
        (
            {"training": {"learnin_rate": 4}},
            "learnin_rate: not a key of training; did you mean learning_rate?",
        ),
        ({"generaton": {}}, "did you mean generation?"),
        ({"learning_rate": 1}, "not a section; it is a key of training: write training.learning_rate"),
    ],
)
def test_the_error_says_what_to_write(sections, words):
    with pytest.raises(RecipeError) as refusal:
        Recipe.model_validate({"model": {"name": "m"}, "task": {"name": "demo"}, **sections})
    assert any(words in fault for fault in refusal.value.faults), refusal.value.faults
