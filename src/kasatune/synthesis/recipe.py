"""Recipes of `kasatune synthesize`: the teacher, the seeds, the requested rows and the filter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kasatune.errors import RecipeError
from kasatune.recipes.messages import sentences, show
from kasatune.recipes.schema import Count, Rate, Text, read_sections
from kasatune.recipes.yaml_io import dump_yaml

Subject = Literal["classification", "summarization", "coding", "closed_qa"]


class _Section(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class TeacherSection(_Section):
    """The teacher model, served with the OpenAI protocol; the key is read from OPENAI_API_KEY.

    `rate` is the most requests a minute, `workers` the most at once; prices are per million tokens.
    """

    model: Text = Field(description="Teacher model, by the name that its server uses.")
    url: Text | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    max_tokens: Count = 4096
    rate: Annotated[float, Field(gt=0)] | None = None
    workers: Annotated[int, Field(ge=1, le=256)] = 1
    prompt_price: Rate | None = None
    completion_price: Rate | None = None


class SeedsSection(_Section):
    """The seed rows, and how many of them each request shows."""

    file: Text = Field(description="File of instruction rows.")
    shown: Annotated[int, Field(ge=1, le=20)] = 1


class DataSection(_Section):
    """The requested rows: `count` in total, `per_request` in each request, from at most `max_requests` requests.

    `max_requests` defaults to four times the number that is needed if every row is accepted.
    """

    subject: Subject = Field(description="Kind of rows: classification, summarization, coding or closed_qa.")
    describe: Text | None = None
    count: Count = Field(description="Number of rows to make.")
    per_request: Annotated[int, Field(ge=1, le=100)] = 10
    max_requests: Count | None = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0


class FilterSection(_Section):
    """The ROUGE-L F1 with the instruction of a seed or earlier row from which on a row is left out."""

    similarity: Annotated[float, Field(gt=0, le=1)] = 0.7


SECTIONS: dict[str, type[BaseModel]] = {
    "teacher": TeacherSection,
    "seeds": SeedsSection,
    "data": DataSection,
    "filter": FilterSection,
}


class SynthesisRecipe(_Section):
    """The complete recipe of a synthesis."""

    teacher: TeacherSection
    seeds: SeedsSection
    data: DataSection
    filter: FilterSection


def load_synthesis(path: Path, overrides: Sequence[str] = (), *, check_inputs: bool = False) -> SynthesisRecipe:
    """The recipe in the YAML file `path`, changed by "section.key=value" overrides.

    Args:
        path: path of the file.
        overrides: their values are parsed as YAML.
        check_inputs: also check that the file of seeds exists.

    Raises:
        RecipeError: the recipe has faults; all are listed.
    """
    source = str(path)
    values, faults = read_sections(path, overrides, SECTIONS, "teacher")
    recipe = None
    try:
        recipe = SynthesisRecipe.model_validate(values)
    except ValidationError as error:
        faults += sentences(error.errors(include_url=False), values, SECTIONS).values()
    if check_inputs:
        faults += _missing(values)
    if faults or recipe is None:
        raise RecipeError(faults, source)
    return recipe


def to_yaml(recipe: SynthesisRecipe) -> str:
    """`recipe` as YAML, with every default filled in."""
    return dump_yaml(recipe.model_dump())


def _missing(values: Mapping[str, Any]) -> list[str]:
    seeds = values.get("seeds")
    name = seeds.get("file") if isinstance(seeds, Mapping) else None
    if isinstance(name, str) and name and not Path(name).is_file():
        return [f"seeds.file: {show(name)}: no such file; check the path (relative ones start at {Path.cwd()})"]
    return []
