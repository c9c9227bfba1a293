"""The task section of a recipe, for tests."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    name: str
    data: str | None = None
    revision: str | None = None
    train: str | None = None
    validation: str | float | None = None
    text: str | tuple[str, ...] | None = None
    label: str | None = None
    prompt: str | None = None
    completion: str | None = None
    max_train: int | None = None
    max_eval: int | None = None
