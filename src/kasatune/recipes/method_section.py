"""The section `method` of a recipe: the fine-tuning method, its settings, and the text that it is calibrated on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_serializer, model_validator

from kasatune.methods.table import DEFAULT_METHOD, METHODS, canonical_name
from kasatune.recipes.section import Amount, Count, Rate, Section, Text, as_integer


class CalibrationSection(Section):
    """The text on which the base is measured before the first step."""

    source: Literal["auto", "task", "generated"] = Field("auto", description="Where the text comes from.")
    rows: Count = Field(64, description="Number of training rows.")


def _as_calibration(value: Any) -> Any:
    """The source alone, as recipes wrote it before there were rows."""
    return {"source": value} if isinstance(value, str) else value


class MethodSection(Section):
    """The fine-tuning method. A method ignores the keys that it does not read; `kasatune list methods` names them."""

    written_if_set: ClassVar[frozenset[str]] = frozenset(
        {"truncate_by", "drop", "protect", "anneal", "orthonormal", "init", "calibration"}
    )

    name: Text = Field(
        DEFAULT_METHOD, description="Fine-tuning method, one of `kasatune list methods`, such as kasa or lora."
    )
    r: Count = Field(8, description="Rank of the update of each adapted layer, or width of a bottleneck adapter.")
    alpha: Amount = Field(
        16, description="Numerator of the scaling s of the update: s = alpha / r, or alpha / sqrt(r) with use_rslora."
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Dropout probability on the input of the trained update, at least 0 and below 1."
    )
    use_rslora: bool = Field(False, description="Scale the update by alpha / sqrt(r) instead of alpha / r.")
    target_modules: Text | Annotated[list[Text], Field(min_length=1)] = Field(
        "default",
        description="Layers to adapt: default (PEFT's choice for LoRA on this architecture), all-linear, a regular "
        "expression that matches the complete module name, or a list of name endings.",
    )
    convention: Literal["paper", "authors"] = Field(
        "paper",
        description="Which published reading of KaSA to follow: paper (the r smallest singular triplets are dropped, "
        "penalties are summed over layers) or authors (the released code).",
    )
    core: Literal["diagonal", "dense"] = Field(
        "diagonal", description="Form of sigma: diagonal (r numbers) or dense (an r x r matrix that starts diagonal)."
    )
    truncation: Literal["attach", "fold"] = Field(
        "attach",
        description="How the dropped triplets are taken from a weight: attach stores them next to the unmodified "
        "weight, fold subtracts them in place (float bases only).",
    )
    beta: Rate = Field(1e-4, description="Weight of the penalty sum(sigma^2), at least 0.")
    gamma: Rate = Field(
        1e-3, description="Weight of the orthogonality penalty ||A A^T - I||_F + ||B^T B - I||_F, at least 0."
    )
    tails: Text | None = Field(
        None,
        description="Directory written by `kasatune decompose`, which saves the decomposition when training starts. "
        "null: decompose then.",
    )
    truncate_by: Literal["magnitude", "activation", "sensitivity"] | None = Field(
        None,
        description="Which component of rank d is dropped from each weight: magnitude (the d smallest singular "
        "triplets, KaSA as published), activation (what the base's activations use least) or sensitivity (what lowers "
        "the loss on held-back training rows, possibly nothing). null: the method's own.",
    )
    drop: Annotated[int, Field(ge=0), BeforeValidator(as_integer)] | None = Field(
        None, description="Rank d of the dropped component, at least 0. null: the method's own, r for kasa."
    )
    protect: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None,
        description="Share of the input directions of each layer, those with the strongest activations, that A may not "
        "use: at least 0 and below 1. null: the method's own, 0 for kasa.",
    )
    anneal: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0,
        description="Share of the optimizer steps, 0 to 1, during which the dropped component fades back in: training "
        "starts without it, and the tuned model, which is evaluated and saved, has it. 0: it stays dropped.",
    )
    orthonormal: bool = Field(
        False,
        description="Start with random orthonormal A and B and sigma = 0, make A and B orthonormal again after each "
        "optimizer step, scale the update by the root mean square of W's singular values, and leave gamma out.",
    )
    init: Literal["random", "gradient"] = Field(
        "random",
        description="Start of A, and with orthonormal of B: random, or the leading singular vectors of the gradient in "
        "each weight on the first 64 training rows (gradient).",
    )
    calibration: Annotated[CalibrationSection, BeforeValidator(_as_calibration)] = Field(
        CalibrationSection.model_validate({}),
        description="Text on which the base is measured, for what depends on activations: a mapping of source and "
        "rows. source: generated (16 sequences of 96 tokens that the base samples itself), task (the first training "
        "rows, with their labels for truncate_by: sensitivity), or auto (generated where the base can generate text, "
        "otherwise task; always task for truncate_by: sensitivity). rows: number of training rows.",
    )
    options: dict[str, Any] = Field(
        {}, description="Settings that only this method has; `kasatune list methods --json` lists them with limits."
    )

    @field_serializer("options")
    def _write_options(self, options: dict[str, Any]) -> dict[str, Any]:
        info = METHODS.get(self.name)
        return options if info is None else info.written(options)

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: Any) -> Any:
        """Replace an alias by the method's name, and fill in the defaults of its options.

        The values of options are checked with the complete recipe.
        """
        if not isinstance(values, Mapping):
            return values
        info = METHODS.get(canonical_name(str(values.get("name", DEFAULT_METHOD))))
        if info is None:
            return values
        completed = {**values, "name": info.name}
        given = values.get("options")
        if given is None or isinstance(given, Mapping):
            completed["options"] = info.complete(given or {})
        return completed
