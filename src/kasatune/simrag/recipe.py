"""Recipes of `kasatune simrag`: model, method and training of both stages, corpus, generated questions, evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from kasatune.data.retrieval.package_documentation import PACKAGE
from kasatune.errors import ModelError, RecipeError
from kasatune.io.model_location import find_model
from kasatune.recipes.messages import sentences, show
from kasatune.recipes.schema import (
    Count,
    MethodSection,
    ModelSection,
    Rate,
    Recipe,
    Text,
    TrainingSection,
    read_sections,
)
from kasatune.recipes.sections import Amount, Section
from kasatune.recipes.yaml_io import dump_yaml

QuestionKind = Literal["short", "choice", "claim"]
SIGNATURES = "signatures"
STAGE_ONE, STAGE_TWO = "stage-1", "stage-2"

_Texts = Text | Annotated[list[Text], Field(min_length=1)]


class CorpusSection(Section):
    """The documents of the domain, their chunks, and how passages are retrieved."""

    documents: _Texts = Field(
        description="Files (.txt, .md, .jsonl, .pdf), folders, or package:MODULE for the documentation of a Python "
        "module; one or a list."
    )
    retriever: Text = Field("bm25", description="bm25, or a dense encoder by its hub id, folder or package:NAME.")
    passages: Count = Field(3, description="Passages in a prompt, and k of the round-trip filter.")
    chunk_words: Count = Field(100, description="Words of a passage.")
    chunk_overlap: Annotated[int, Field(ge=0)] = Field(20, description="Words shared with the passage before.")
    max_length: Count = Field(768, description="Longest row, in tokens.")


class StageOneSection(Section):
    """Stage I: general instructions, context questions, and the two retrieval skills made of the context questions."""

    instructions: Text = Field(description="File of conversations or Alpaca rows.")
    context_qa: _Texts = Field(
        description="Files with the columns context, question and answer, or package:MODULE for questions about the "
        "signatures of a Python module; one or a list."
    )
    max_instructions: Count = Field(400, description="Use at most this many instructions, drawn by training.seed.")
    max_context_qa: Count = Field(200, description="Use at most this many context questions, drawn by training.seed.")
    epochs: Amount | None = Field(None, description="Passes over the rows of stage I. null: training.epochs.")
    learning_rate: Rate | None = Field(None, description="Peak learning rate. null: training.learning_rate.")


class StageTwoSection(Section):
    """Stage II: questions that the stage-I model writes for the documents, filtered by retrieval."""

    begin: Literal["continue", "merge"] = Field(
        "continue",
        description="continue: the adapter of stage I is trained further; merge: it is merged into the base, and a new "
        "adapter begins.",
    )
    kinds: Annotated[list[QuestionKind], Field(min_length=1)] = Field(
        ["short", "choice", "claim"], description="Kinds of questions, taken in turn: short, choice, claim."
    )
    chunks: Count = Field(400, description="Generate from at most this many chunks, taken over all documents in turn.")
    answers_per_chunk: Annotated[int, Field(ge=1, le=8)] = Field(
        2, description="Parts of a chunk, from each of which one answer is extracted."
    )
    max_pairs: Count | None = Field(None, description="Train on at most this many kept pairs. null: all.")
    epochs: Amount | None = Field(None, description="Passes over the rows of stage II. null: training.epochs.")
    learning_rate: Rate | None = Field(None, description="Peak learning rate. null: training.learning_rate.")


class EvaluationSection(Section):
    """The evaluation questions; the documents that answer them stay in the index and out of stage II."""

    questions: Text = Field(
        SIGNATURES,
        description="signatures: questions made by rule from the signatures in the package:MODULE documents; or a file "
        "with the columns question, answer and optionally document.",
    )
    count: Count = Field(300, description="Number of questions.")
    max_new_tokens: Count = Field(24, description="Longest answer, in tokens.")


SECTIONS: dict[str, type[BaseModel]] = {
    "model": ModelSection,
    "method": MethodSection,
    "training": TrainingSection,
    "corpus": CorpusSection,
    "stage_one": StageOneSection,
    "stage_two": StageTwoSection,
    "evaluation": EvaluationSection,
}


class SimragRecipe(Section):
    """The complete recipe."""

    model: ModelSection
    method: MethodSection
    training: TrainingSection
    corpus: CorpusSection
    stage_one: StageOneSection
    stage_two: StageTwoSection
    evaluation: EvaluationSection


def load_simrag(path: Path, overrides: Sequence[str] = ()) -> SimragRecipe:
    """The recipe in the YAML file `path`, changed by "section.key=value" overrides; its files must exist.

    Raises:
        RecipeError: the recipe has faults; all are listed.
    """
    source = str(path)
    values, faults = read_sections(path, overrides, SECTIONS, "corpus")
    if isinstance(values["training"], dict):
        values["training"].setdefault("select", "last")
    recipe = None
    try:
        recipe = SimragRecipe.model_validate(values)
    except ValidationError as error:
        faults += sentences(error.errors(include_url=False), values, SECTIONS).values()
    if recipe is not None:
        faults += _combined(recipe)
    if faults or recipe is None:
        raise RecipeError(faults, source)
    return recipe


def to_yaml(recipe: SimragRecipe) -> str:
    """`recipe` as YAML, with every default filled in."""
    return dump_yaml(recipe.model_dump())


def sources(given: str | list[str]) -> list[str]:
    """One source, or several, as a list."""
    return [given] if isinstance(given, str) else given


def stage_recipe(recipe: SimragRecipe, out: Path, stage: str, model: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe of the run of one stage: the task rag-qa on the rows of the stage.

    Args:
        recipe: recipe of both stages.
        out: the output directory.
        stage: `STAGE_ONE` or `STAGE_TWO`.
        model: the section `model` of a stage that begins with another base; None for that of the recipe.

    Raises:
        RecipeError: the method, the training or the model cannot do it.
    """
    section = recipe.stage_one if stage == STAGE_ONE else recipe.stage_two
    training = recipe.training.model_dump()
    training |= {key: value for key in ("epochs", "learning_rate") if (value := getattr(section, key)) is not None}
    corpus = recipe.corpus
    return Recipe.model_validate(
        {
            "model": dict(model or recipe.model.model_dump()),
            "task": {
                "name": "rag-qa",
                "train": str(out / f"{stage}.jsonl"),
                "validation": str(out / "evaluation.jsonl"),
                "corpus": str(out / "corpus.jsonl"),
                "retriever": corpus.retriever,
                "passages": corpus.passages,
                "chunk_words": corpus.chunk_words,
                "chunk_overlap": corpus.chunk_overlap,
                "max_length": corpus.max_length,
            },
            "method": recipe.method.model_dump(),
            "training": training,
            "generation": {"max_new_tokens": recipe.evaluation.max_new_tokens},
            "output": str(out / stage),
        }
    )


def _combined(recipe: SimragRecipe) -> list[str]:
    faults = []
    corpus, training = recipe.corpus, recipe.training
    if corpus.chunk_overlap >= corpus.chunk_words:
        faults.append(
            f"corpus.chunk_overlap: {corpus.chunk_overlap} received; must be below corpus.chunk_words "
            f"({corpus.chunk_words})"
        )
    if training.select != "last" or training.patience is not None:
        faults.append(
            "training.select: only last, without patience: the rows that an epoch is selected by would be the "
            "evaluation questions"
        )
    if recipe.model.adapter is not None:
        faults.append("model.adapter: both stages train new adapters; merge it (`kasatune merge`) and name the result")
    packages = [name for name in sources(corpus.documents) if name.startswith(PACKAGE)]
    if recipe.evaluation.questions == SIGNATURES and not packages:
        faults.append(
            "evaluation.questions: signatures received; corpus.documents names no package:MODULE; give a file with the "
            "columns question and answer"
        )
    files = [("corpus.documents", name) for name in sources(corpus.documents)]
    files += [("stage_one.instructions", recipe.stage_one.instructions)]
    files += [("stage_one.context_qa", name) for name in sources(recipe.stage_one.context_qa)]
    if recipe.evaluation.questions != SIGNATURES:
        files.append(("evaluation.questions", recipe.evaluation.questions))
    faults += [
        f"{key}: {show(name)}: no such file or folder; check the path (relative ones start at {Path.cwd()})"
        for key, name in files
        if not name.startswith(PACKAGE) and not Path(name).expanduser().exists()
    ]
    try:
        find_model(recipe.model.base_name)
    except ModelError as error:
        faults.append(str(error))
    try:
        stage_recipe(recipe, Path("out"), STAGE_ONE)
    except RecipeError as error:
        faults += error.faults
    return faults
