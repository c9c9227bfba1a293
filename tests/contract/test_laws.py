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
    loading_restores_the_outputs,
    merging_keeps_the_outputs,
    starts_as_the_base_unless_documented,
    switched_off_it_equals_the_base,
    trains_exactly_the_documented_parameters,
)

BY_GRADIENT = [name for name, info in methods.METHODS.items() if not info.fitted]
# Laws that depend on the architecture: other layers, other names, weights stored transposed.
ARCHITECTURE_LAWS = (
    starts_as_the_base_unless_documented,
    trains_exactly_the_documented_parameters,
    loading_restores_the_outputs,
    switched_off_it_equals_the_base,
    merging_keeps_the_outputs,
)


def test_every_method_has_its_facts():
    assert set(FACTS) == set(BY_GRADIENT)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", BY_GRADIENT)
def test_on_an_encoder(name, law):
    law(Case(methods.load(name), "bert"))


@pytest.mark.parametrize("law", ARCHITECTURE_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize(
    ("name", "base"),
    [(name, base) for name in FACTS for base in TINY if base != "bert" and base not in FACTS[name].refuses],
)
def test_on_a_decoder(name, base, law):
    law(Case(methods.load(name), base))


@pytest.mark.parametrize(("name", "base"), [(name, base) for name in FACTS for base in FACTS[name].refuses])
def test_an_unsupported_base_is_refused_by_name(name, base):
    with pytest.raises(ModelError, match=FACTS[name].refuses[base]):
        Case(methods.load(name), base).attached()


def test_the_tiny_bases_show_a_change():
    """Assumptions of the laws: outputs differ from row to row, and the model has parameters outside the head."""
    for base in TINY:
        model = tiny_model(base)
        assert float(logits(model).std(0).min()) > 1e-2
        assert any(
            not within(name, Case(methods.load("lora"), base).new_modules) for name, _ in model.named_parameters()
        )
