"""Every method of the table obeys every law, on an encoder and on two decoders."""

from __future__ import annotations

import pytest

from kasatune import methods
from kasatune.errors import ModelError
from kasatune.methods.shared.trained_parameters import within
from tests.contract.bases import TINY, tiny_model
from tests.contract.facts import FACTS
from tests.contract.harness import Case, logits
from tests.contract.laws import (
    LAWS,
    disabled_it_is_the_base,
    merged_it_computes_the_same,
    saved_and_loaded_it_is_the_same,
    starts_as_the_base_or_says_how_it_differs,
    trains_exactly_what_it_says,
)

BY_GRADIENT = [name for name in methods.METHODS if name != "head"]  # it is fitted in one go, and has tests of its own
# Laws in which the architecture counts: other layers, other names, weights stored transposed.
OF_THE_BASE = (
    starts_as_the_base_or_says_how_it_differs,
    trains_exactly_what_it_says,
    saved_and_loaded_it_is_the_same,
    disabled_it_is_the_base,
    merged_it_computes_the_same,
)


def test_every_method_is_known_to_the_contract():
    assert set(FACTS) == set(BY_GRADIENT)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", BY_GRADIENT)
def test_on_an_encoder(name, law):
    law(Case(methods.load(name), "bert"))


@pytest.mark.parametrize("law", OF_THE_BASE, ids=lambda law: law.__name__)
@pytest.mark.parametrize(
    ("name", "base"),
    [(name, base) for name in FACTS for base in TINY if base != "bert" and base not in FACTS[name].refuses],
)
def test_on_a_decoder(name, base, law):
    law(Case(methods.load(name), base))


@pytest.mark.parametrize(("name", "base"), [(name, base) for name in FACTS for base in FACTS[name].refuses])
def test_what_cannot_be_adapted_is_refused_by_name(name, base):
    with pytest.raises(ModelError, match=FACTS[name].refuses[base]):
        Case(methods.load(name), base).attached()


def test_the_tiny_bases_tell_a_change_from_none():
    """What the laws rest on: outputs differ from row to row, and the head is not the whole of the model."""
    for base in TINY:
        model = tiny_model(base)
        assert float(logits(model).std(0).min()) > 1e-2
        assert any(
            not within(name, Case(methods.load("lora"), base).new_modules) for name, _ in model.named_parameters()
        )
