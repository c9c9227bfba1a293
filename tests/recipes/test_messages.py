"""Messages made from pydantic's errors: never "Value error," in front."""

from pydantic import BaseModel, ValidationError, field_validator

from kasatune.recipes.messages import message


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
