"""Options of methods in recipes: defaults, checks, overrides, aliases."""

from __future__ import annotations

import pytest
import yaml

from kasatune.errors import InputError, RecipeError
from kasatune.experiments.compare.variants import parse_variants
from kasatune.methods.info import MethodInfo, Option
from kasatune.recipes import schema as recipes
from kasatune.recipes.schema import MethodSection, Recipe, apply_overrides, to_yaml

OPTIONS = (
    Option("ratio", "number", 16.0, "a ratio", low=1),
    Option("steps", "integer", 10, "a count", low=0, above=True, high=99),
    Option("warm", "flag", True, "whether"),
    Option("mode", "choice", "minor", "which", choices=("minor", "major")),
    Option("share", "number", None, "a share", low=0, high=1, below=True, optional=True),
    Option("word", "text", "a", "a word"),
)
DEFAULTS = {"ratio": 16.0, "steps": 10, "warm": True, "mode": "minor", "share": None, "word": "a"}


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    info = MethodInfo("toy", "Toy", "none", "nothing", "0", "any", "nobody", "nowhere", options=OPTIONS)
    monkeypatch.setitem(recipes.METHODS, "toy", info)


def read(options=None, **method) -> Recipe:
    given = {} if options is None else {"options": options}
    return Recipe.model_validate(
        {"model": {"name": "m"}, "task": {"name": "glue/rte"}, "method": {"name": "toy", **given, **method}}
    )


def faults(options, **method):
    with pytest.raises(RecipeError) as caught:
        read(options, **method)
    return caught.value.faults


def test_defaults_are_filled_in_and_written(toy):
    assert read().method.options == read({}).method.options == read(None).method.options == DEFAULTS
    assert MethodSection(name="toy").options == DEFAULTS
    assert yaml.safe_load(to_yaml(read({"ratio": 4})))["method"]["options"] == {**DEFAULTS, "ratio": 4.0}
    assert MethodSection(name="lora").options == {}


def test_numbers_take_the_options_own_type():
    options = read({"ratio": 4, "steps": 20.0}).method.options
    assert (type(options["ratio"]), type(options["steps"])) == (float, int)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"ratoi": 2}, "method.options.ratoi: not an option of toy; did you mean ratio?"),
        (
            {"zzz": 2},
            "method.options.zzz: not an option of toy; its options are ratio, steps, warm, mode, share, word",
        ),
        ({"alpha": 2}, "method.options.alpha: not an option; it is a key of method: write method.alpha"),
        ({"ratio": 0.5}, "method.options.ratio: 0.5 received; must be a number of at least 1; the default is 16.0"),
        ({"ratio": "big"}, 'method.options.ratio: "big" received; must be a number of at least 1; the default is 16.0'),
        ({"ratio": True}, "method.options.ratio: true received; must be a number of at least 1; the default is 16.0"),
        ({"ratio": None}, "method.options.ratio: null received; must be a number of at least 1; the default is 16.0"),
        (
            {"steps": 0},
            "method.options.steps: 0 received; must be a whole number above 0 and at most 99; the default is 10",
        ),
        (
            {"steps": 2.5},
            "method.options.steps: 2.5 received; must be a whole number above 0 and at most 99; the default is 10",
        ),
        ({"warm": 1}, "method.options.warm: 1 received; must be true or false; the default is true"),
        (
            {"mode": "mjor"},
            'method.options.mode: "mjor" received; must be "minor" or "major"; did you mean major?;'
            ' the default is "minor"',
        ),
        (
            {"share": 1},
            "method.options.share: 1.0 received; must be a number of at least 0 and below 1 or null;"
            " the default is null",
        ),
        ({"word": ""}, 'method.options.word: "" received; must be text; the default is "a"'),
    ],
)
def test_a_wrong_option_is_named_with_its_limits(options, fault):
    assert faults(options) == (fault,)


def test_every_fault_is_reported_with_those_of_other_keys():
    assert len(faults({"ratio": 0, "steps": 0, "x": 1}, r=0)) == 4


def test_options_are_a_mapping():
    (fault,) = faults([1])
    assert fault.startswith("method.options: [1] received; must be a mapping")


def test_a_method_without_options_takes_none():
    (fault,) = faults({"ratio": 2}, name="lora")
    assert fault == "method.options.ratio: not an option of lora; it has none, leave it out"


def test_an_unknown_method_is_one_fault():
    (fault,) = faults({"ratio": 2}, name="tyo")
    assert fault.startswith('method.name: "tyo" is not a method')


def test_an_override_sets_one_option():
    values = {"method": {"name": "toy", "options": {"warm": False}}}
    assert apply_overrides(values, ["method.options.ratio=4"]) == []
    assert values["method"] == {"name": "toy", "options": {"warm": False, "ratio": 4}}
    empty: dict = {}
    assert apply_overrides(empty, ["method.options.ratio=4"]) == []
    assert empty == {"method": {"options": {"ratio": 4}}}
    assert len(apply_overrides({}, ["method.options.=4", "method.options.a.b=4", "training.options.a=4"])) == 3


def test_a_method_that_was_rebuilt_says_so_in_its_title():
    info = MethodInfo("toy", "Toy", "none", "nothing", "0", "any", "nobody", "nowhere", reconstructed=True)
    assert info.shown_title == "Toy (reconstructed)"


def test_an_alias_is_read_as_the_methods_name():
    recipe = Recipe.model_validate(
        {"model": {"name": "m"}, "task": {"name": "glue/rte"}, "method": {"name": "linear-probe"}}
    )
    assert (recipe.method.name, recipe.output) == ("head", "runs/rte-head")
    values = {"method": {"name": "toy", "options": {"warm": False}}}
    assert apply_overrides(values, ["method.name=linear-probe"]) == []
    assert "options" not in values["method"]
    values = {"method": {"name": "head", "options": {}}}
    assert apply_overrides(values, ["method.name=linear-probe"]) == []
    assert "options" in values["method"]


def test_an_alias_names_a_variant_of_a_comparison():
    (variant,) = parse_variants("linear-probe")
    assert (variant.text, variant.method) == ("head", "head")
    with pytest.raises(InputError, match="head is given twice"):
        parse_variants("head,linear-probe")
