"""Parameter counts from configurations equal the published ones and the formulas."""

from __future__ import annotations

import copy
import re

import pytest

from kasatune import methods
from kasatune.recipes.schema import MethodSection
from tests.contract.bases import HEAD, REAL, on_meta
from tests.contract.facts import ALPHA, FACTS, RANKS_FROM_WEIGHTS, R, Shape
from tests.contract.published import PUBLISHED, Published

SHAPES = {
    "roberta-base": (768, 3072),
    "roberta-large": (1024, 4096),
    "gpt2-medium": (1024, 4096),
    "llama2-7b": (4096, 11008),
}
_UNITS = {"M": 1e6, "": 1.0}


def count(name: str, config, **settings) -> int | None:
    return methods.load(name).trained_parameters(
        on_meta(config), MethodSection(name=name, **settings), "classification", [HEAD[config.model_type]]
    )


@pytest.mark.parametrize("case", PUBLISHED, ids=lambda case: f"{case.method}-{case.model}-{case.printed}")
def test_the_published_count(case: Published):
    counted = count(case.method, REAL[case.model], **case.settings)
    assert counted == case.count
    number, unit = re.fullmatch(r"([\d.]+)(M?)", case.printed).groups()
    digits = len(number.partition(".")[2])
    assert round(counted / _UNITS[unit], digits) == float(number)


@pytest.mark.parametrize("model", SHAPES)
@pytest.mark.parametrize(
    "name", [name for name, facts in FACTS.items() if facts.trained and name not in RANKS_FROM_WEIGHTS]
)
def test_the_formula_holds_at_the_width_of_real_models(name, model):
    """On two blocks of each model."""
    facts, config = FACTS[name], copy.copy(REAL[model])
    if {"gpt2-medium": "gpt2", "llama2-7b": "llama"}.get(model) in facts.refuses:
        pytest.skip(f"{name} refuses it")
    config.num_hidden_layers = 2
    shape = Shape(config.model_type, *SHAPES[model], L=2)
    assert facts.trained is not None
    assert count(name, config, r=R, alpha=ALPHA, options=dict(facts.options)) == facts.trained(shape)
