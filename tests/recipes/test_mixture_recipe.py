"""Recipes of a mixture: what is refused, how faults name the part, and defaults."""

import pytest

from kasatune.errors import RecipeError
from kasatune.recipes.schema import Recipe, apply_overrides, recipe_json_schema, to_yaml
from kasatune.recipes.yaml_io import parse_yaml

E2E = {"name": "e2e"}
CHATS = {"name": "instruction", "train": "a.jsonl", "validation": 0.1}


def make(parts, **task):
    return Recipe.model_validate(
        {"model": {"name": "gpt2"}, "task": {"name": "mixture", "parts": parts, **task}, "output": "runs/x"}
    )


def faults(parts, **task):
    with pytest.raises(RecipeError) as caught:
        make(parts, **task)
    return "\n".join(caught.value.faults)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (None, "task.parts: missing; mixture trains on several tasks"),
        ([], "task.parts: [] received; must be a list of at least 1"),
        ([E2E], "task.parts: 1 part received; a mixture has 2 or more; give another part, or write the task alone: "
                "task.name: e2e"),
        ([E2E, {"name": "webnlh"}], 'task.parts[webnlh].name: "webnlh" is not a task; did you mean webnlg?'),
        ([E2E, {"name": "mixture"}], "a mixture cannot be a part of a mixture"),
        ([E2E, {"name": "glue/rte"}], "it writes no text: choose one of"),
        ([E2E, {**CHATS, "weight": 0}], "task.parts[instruction].weight: 0 received; must be a number above 0"),
        ([E2E, {**CHATS, "weight": -1}], "task.parts[instruction].weight: -1 received; must be a number above 0"),
        ([E2E, {**CHATS, "weight": float("nan")}], "task.parts[instruction].weight: NaN received; must be"),
        ([E2E, {**CHATS, "weight": "much"}], 'task.parts[instruction].weight: "much" received; must be a number'),
        ([E2E, E2E], "task.parts: 2 parts are called e2e; give each another title, such as e2e-2"),
        ([{"name": "commonsense"}, {"name": "commonsense/boolq"}], "/boolq reads like a part of commonsense"),
        ([E2E, {"weight": 2}], "task.parts[part 2].name: missing"),
        ([E2E, {**CHATS, "max_length": 8}], "it is the same for all parts: write task.max_length"),
        ([E2E, {**CHATS, "weihgt": 8}], "task.parts[instruction].weihgt: not a key of a part; did you mean weight?"),
        ([E2E, {"name": "instruction"}], "task.parts[instruction].train: missing; instruction reads your own data"),
        ([E2E, {**CHATS, "train": "a.txt"}], 'task.parts[instruction].train: "a.txt" received; must end in one of'),
        ([E2E, {**CHATS, "prompt": "q"}], "instruction does not read it (it is for text-generation)"),
        ([E2E, {**CHATS, "validation": 1.5}], "task.parts[instruction].validation: 1.5 received; must be"),
        ([E2E, {**CHATS, "generation": {"num_beams": 0}}], "task.parts[instruction].generation.num_beams: 0 received"),
        ([E2E, {**CHATS, "name": "text-generation", "train": "hub:a:train"}], "task.parts[text-generation].train"),
        (["e2e", CHATS], 'task.parts[part 1]: "e2e" received; must be a mapping such as {name: e2e, weight: 1}'),
        ({"e2e": 1}, "task.parts: "),
    ],
)  # fmt: skip
def test_faults_name_the_part_the_value_and_the_remedy(parts, message):
    assert message in faults(parts)


def test_rows_belong_to_the_parts():
    assert 'task.train: "x.csv" received; a mixture reads it in its parts' in faults([E2E, CHATS], train="x.csv")
    assert 'task.revision: "v1" received; a mixture reads it in its parts' in faults([E2E, CHATS], revision="v1")


def test_parts_and_their_seed_are_for_mixtures_alone():
    with pytest.raises(RecipeError) as caught:
        Recipe.model_validate(
            {"model": {"name": "gpt2"}, "task": {"name": "e2e", "parts": [E2E, CHATS], "draw_seed": 3}}
        )
    assert [fault.split(":")[0] for fault in caught.value.faults] == ["task.parts", "task.draw_seed"]


def test_all_faults_are_reported_at_once():
    text = faults([{**E2E, "weight": 0}, {**CHATS, "weight": -2}], max_length=0)
    assert "task.parts[e2e].weight" in text
    assert "task.parts[instruction].weight" in text
    assert "task.max_length" in text


def test_each_part_is_decoded_as_its_own_task_unless_the_recipe_says_otherwise():
    recipe = make([E2E, CHATS])
    assert [part.generation.num_beams for part in recipe.task.parts] == [10, 1]
    assert [part.generation.max_new_tokens for part in recipe.task.parts] == [64, 256]
    same = Recipe.model_validate(
        {
            "model": {"name": "gpt2"},
            "task": {"name": "mixture", "parts": [E2E, {**CHATS, "generation": {"max_new_tokens": 9}}]},
            "generation": {"num_beams": 2, "max_new_tokens": 7},
        }
    )
    assert [part.generation.num_beams for part in same.task.parts] == [2, 2]
    assert [part.generation.max_new_tokens for part in same.task.parts] == [7, 9]


def test_a_written_recipe_reads_as_the_same():
    recipe = make([{**E2E, "title": "facts", "weight": 2}, CHATS], draw_seed=4)
    assert Recipe.model_validate(parse_yaml(to_yaml(recipe))) == recipe


def test_other_recipes_are_written_as_before():
    text = to_yaml(Recipe.model_validate({"model": {"name": "gpt2"}, "task": {"name": "e2e"}}))
    assert "parts" not in text
    assert "draw_seed" not in text


def test_editors_know_the_tasks_of_parts():
    names = recipe_json_schema()["$defs"]["PartSection"]["properties"]["name"]["enum"]
    assert "e2e" in names
    assert "mixture" not in names
    assert "classification" not in names


def test_an_override_changes_a_key_of_one_part():
    first, second = {**E2E, "generation": {"num_beams": 2}}, {**CHATS, "title": "chats"}
    values = {"task": {"name": "mixture", "parts": [first, second]}}
    overrides = ["task.parts[e2e].data=a/b", "task.parts[e2e].generation.top_p=0.5", "task.parts[chats].weight=3"]
    assert apply_overrides(values, overrides) == []
    changed = {**first, "data": "a/b", "generation": {"num_beams": 2, "top_p": 0.5}}
    assert values["task"]["parts"] == [changed, {**second, "weight": 3}]
    assert first == {**E2E, "generation": {"num_beams": 2}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.parts[webnlg].data=x", "no part is called webnlg; the parts are e2e, e2e, instruction"),
        ("task.parts[e2e].data=x", "2 parts are called e2e; give each another title"),
        ("task.parts[instruction].train.x=y", "train has no keys; write task.parts[instruction].train=value"),
        ("task.parts[].data=x", "must be section.key=value"),
        ("task.parts[instruction]=x", "must be section.key=value"),
        ("task.parts[instruction].train", "must be section.key=value"),
    ],
)
def test_an_override_of_a_part_that_cannot_be_applied_is_named(override, message):
    values = {"task": {"name": "mixture", "parts": [E2E, E2E, CHATS]}}
    (fault,) = apply_overrides(values, [override])
    assert message in fault
    assert values["task"]["parts"] == [E2E, E2E, CHATS]


def test_an_override_of_a_part_needs_parts():
    (fault,) = apply_overrides({"task": {"name": "e2e"}}, ["task.parts[e2e].data=x"])
    assert "the recipe has no task.parts; only a mixture of tasks has parts" in fault
