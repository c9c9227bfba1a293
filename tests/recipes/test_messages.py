"""Messages made from pydantic's errors: never "Value error," in front."""

import pytest
from pydantic import BaseModel, ValidationError, field_validator

from kasatune.errors import RecipeError
from kasatune.recipes.messages import message
from kasatune.recipes.schema import Recipe


class Model(BaseModel):
    name: str

    @field_validator("name")
    @classmethod
    def _refuse(cls, value: str) -> str:
        raise ValueError(f"{value} is no name")


def test_the_message_of_a_validator_stands_alone():
    try:
        Model.model_validate({"name": "x"})
    except ValidationError as error:
        (fault,) = error.errors()
    assert fault["msg"].startswith("Value error, ")
    assert message(fault) == "x is no name"


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("epochs", 1e300, "training.epochs: 1e+300 received; must be at most 1,000,000"),
        ("batch_size", 2**31, "training.batch_size: 2147483648 received; must be at most 2,147,483,647"),
        ("max_steps", 10**20, "must be at most 2,147,483,647"),
    ],
)
def test_numbers_that_no_run_can_have_are_refused_with_the_limit(key, value, words):
    with pytest.raises(RecipeError) as refusal:
        Recipe.model_validate({"model": {"name": "m"}, "task": {"name": "demo"}, "training": {key: value}})
    assert words in str(refusal.value)
