"""The sections of a recipe: every key with its type, limits, default, and a description for editors and the reference.

`RecipeSections` holds all of them. A section checks each of its keys alone; `kasatune.recipes.validation` checks what
several keys must satisfy together, and `kasatune.recipes.schema.Recipe` does both.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from kasatune.recipes.method_section import MethodSection
from kasatune.recipes.section import Amount, Count, Fraction, Rate, Section, Share, Text, as_integer, as_list
from kasatune.recipes.text_sections import GenerationSection, PreferenceSection


def _null_or_zero(value: float | None) -> float | None:
    if value:
        raise ValueError("null (the model's own) or 0")
    return value


class ModelSection(Section):
    """The base model and how its weights are loaded."""

    written_if_set: ClassVar[frozenset[str]] = frozenset({"gguf_file", "adapter"})

    name: Text = Field(
        description="Base model: a hub id, a folder, a GGUF file, or package:NAME for a model that an installed Python "
        "package contains."
    )
    gguf_file: Text | None = Field(
        None,
        description="GGUF file in the hub repository, folder or package, to be loaded dequantized instead of "
        "safetensors. null: safetensors, or the only model in a package.",
    )
    adapter: Text | None = Field(
        None,
        description="Run directory or adapter on this base whose training continues, such as an instruction run before "
        "preference; for tasks that generate text and the methods kasa, akasa, lora, rslora, lora-plus and dora. null: "
        "a new adapter.",
    )
    revision: Text | None = Field(
        None, description="Branch, tag or commit of a hub model. null: the newest commit, which the run records."
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="Type in which the base weights are held. Adapter weights stay float32."
    )
    quantization: Literal["none", "nf4", "int8", "torchao-int8"] = Field(
        "none",
        description="Quantization of the frozen base weights: nf4 (4 bits) and int8 through bitsandbytes, "
        "torchao-int8 through torchao; needs kasatune[quant].",
    )
    dropout: Annotated[float | None, AfterValidator(_null_or_zero)] = Field(
        None, description="null keeps the dropout of the model's own configuration, 0 switches it off."
    )
    trust_remote_code: bool = Field(False, description="Allow a model to run the Python code in its repository.")

    @property
    def base_name(self) -> str:
        """The name of the base in one string, with its GGUF file; commands take it as --base, and adapters store it."""
        return self.name if self.gguf_file is None else f"{self.name.rstrip('/')}/{self.gguf_file}"


class PartSection(Section):
    """One task of a mixture, with the keys of the section `task` that name its rows."""

    written_if_set: ClassVar[frozenset[str]] = frozenset({"title"})

    name: Text = Field(description="Task of this part, one that writes text, such as e2e, instruction or commonsense.")
    title: Text | None = Field(
        None, description="Name of the part in scores and reports, if another part has the same task. null: name."
    )
    weight: Annotated[float, Field(gt=0)] = Field(
        1.0, description="Share of the training rows, relative to the weights of the other parts, above 0."
    )
    data: Text | None = Field(None, description="See task.data.")
    revision: Text | None = Field(None, description="See task.revision.")
    train: Text | None = Field(None, description="See task.train.")
    validation: Text | Share | None = Field(None, description="See task.validation.")
    prompt: Text | None = Field(None, description="See task.prompt.")
    completion: Text | None = Field(None, description="See task.completion.")
    max_train: Count | None = Field(None, description="Draw from at most this many rows, the first ones. null: all.")
    max_eval: Count | None = Field(None, description="See task.max_eval.")
    generation: GenerationSection | None = Field(
        None,
        description="Decoding of this part, where it differs from the section generation. null: that of its task.",
    )

    @property
    def part_name(self) -> str:
        """The name of the part in scores: `title`, or the task if that is not given."""
        return self.title or self.name

    @property
    def text(self) -> None:
        """A task that writes text has no column of this key."""
        return

    @property
    def label(self) -> None:
        """A task that writes text has no column of this key."""
        return


class TaskSection(Section):
    """The task and its rows. `train` to `completion` are for your own data; lengths are in tokens, sizes in rows."""

    written_if_set: ClassVar[frozenset[str]] = frozenset(
        {
            *("template", "parts", "draw_seed"),
            *("corpus", "retriever", "passages", "chunk_words", "chunk_overlap"),
        }
    )

    name: Text = Field(
        description="Task to train on and score, one of `kasatune list tasks`, such as glue/rte or classification."
    )
    data: Text | None = Field(
        None, description="Folder with a benchmark's files. null: the benchmark is downloaded from the hub."
    )
    revision: Text | None = Field(
        None,
        description="Branch, tag or commit of a benchmark on the hub. null: the newest commit, which the run records.",
    )
    train: Text | None = Field(
        None,
        description="File of training rows (CSV, TSV, JSON, JSONL or Parquet), or hub:NAME[@REVISION]:SPLIT for "
        "instruction, preference and reward.",
    )
    validation: Text | Share | None = Field(
        None,
        description="File of validation rows, or the share of the training rows (between 0 and 1) to hold out for "
        "validation.",
    )
    text: Text | Annotated[list[Text], Field(min_length=1, max_length=2)] | None = Field(
        None, description="Column that holds the text, or a list of two columns for pairs of texts."
    )
    label: Text | None = Field(None, description="Column that holds the class (classification) or number (regression).")
    prompt: Text | None = Field(None, description="Column that holds the prompt (text-generation).")
    completion: Text | None = Field(
        None, description="Column that holds the text to write after the prompt (text-generation)."
    )
    loss_on: Literal["completion", "last-answer", "everything"] | None = Field(
        None,
        description="Tokens that the loss counts in tasks that generate text: completion (their default; of "
        "conversations, every answer), last-answer (of conversations, the last one only) or everything, the prompt "
        "included.",
    )
    template: Text | None = Field(
        None,
        description="Chat template of conversations: alpaca, chatml, gemma, llama3 or mistral, or one of those "
        "of a tokenizer that has several. null: the model's own, or alpaca if it has none.",
    )
    corpus: Text | Annotated[list[Text], Field(min_length=1)] | None = Field(
        None,
        description="Documents of rag-qa: files (.txt, .md, .jsonl, .pdf), folders, or package:MODULE for the "
        "documentation of a Python module; one or a list.",
    )
    retriever: Text = Field(
        "bm25",
        description="How rag-qa finds passages: bm25, or a dense encoder by its hub id, folder or package:NAME.",
    )
    passages: Count = Field(3, description="Passages in a prompt of rag-qa.")
    chunk_words: Count = Field(100, description="Words of a passage of rag-qa.")
    chunk_overlap: Annotated[int, Field(ge=0), BeforeValidator(as_integer)] = Field(
        20, description="Words that a passage of rag-qa shares with the one before; less than chunk_words."
    )
    max_length: Count = Field(128, description="Longest row, in tokens; longer rows are cut, and the cuts are counted.")
    max_train: Count | None = Field(
        None,
        description="Use at most this many training rows; of a mixture, draw so many rows for an epoch. null: as many "
        "as there are.",
    )
    max_eval: Count | None = Field(
        None, description="Use at most this many validation rows, of a mixture in each part. null: all."
    )
    parts: Annotated[list[PartSection], Field(min_length=1)] | None = Field(
        None,
        description="mixture only: the tasks that are mixed, a list of {name, data, weight, ...}: title, weight, the "
        "keys of this section that name the rows, max_train, max_eval and generation.",
    )
    draw_seed: Annotated[int, Field(ge=0, le=2**32 - 1), BeforeValidator(as_integer)] = Field(
        0, description="mixture only: seed of the draw of training rows, the same for every training.seed."
    )


class TrainingSection(Section):
    """Optimization: schedule, batch, learning rates, precision, device."""

    written_if_set: ClassVar[frozenset[str]] = frozenset({"group_by_length", "eval_steps", "save_steps", "patience"})

    epochs: Annotated[Amount, Field(le=1_000_000)] = Field(
        3, description="Passes over the training rows; may be a fraction. max_steps replaces it."
    )
    max_steps: Count | None = Field(None, description="Optimizer steps of the complete run. null: epochs decides.")
    batch_size: Count = Field(32, description="Examples per optimizer step, over all processes and accumulated pieces.")
    gradient_accumulation: Count = Field(
        1,
        description="Micro-batches that batch_size is cut into, to save memory; must divide batch_size. The gradient "
        "does not depend on it.",
    )
    eval_batch_size: Count = Field(64, description="Rows that are evaluated, or prompts that are answered, at a time.")
    learning_rate: Rate = Field(5e-4, description="Peak learning rate of AdamW, at least 0.")
    head_learning_rate: Rate | None = Field(
        None, description="Learning rate of newly initialized modules such as the head. null: learning_rate."
    )
    weight_decay: Rate = Field(
        0.0, description="Weight decay of AdamW, at least 0; biases and normalization weights are excluded."
    )
    warmup_ratio: Fraction = Field(0.06, description="Share of the optimizer steps, 0 to 1, with a rising rate.")
    schedule: Literal["linear", "cosine", "polynomial", "inverse_sqrt", "constant_with_warmup", "constant"] = Field(
        "linear", description="Learning-rate schedule after the warm-up; constant has no warm-up."
    )
    max_grad_norm: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Clip the gradient of the task loss to this Euclidean norm. null: no clipping."
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "float32",
        description="Type of the forward and backward pass (automatic mixed precision for 16 bits). auto: bfloat16 on "
        "GPUs from Ampere on and on processors with AVX512-BF16 or AMX, otherwise float32; the run records which.",
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, more time."
    )
    group_by_length: bool = Field(
        False,
        description="Put rows of similar length into one batch, so that little padding is computed. The order of the "
        "batches is drawn from the seed.",
    )
    packing: bool = Field(
        False,
        description="Tasks that generate text: put several rows into one sequence of task.max_length tokens, without "
        "attention between them. batch_size then counts sequences.",
    )
    seed: Annotated[int, Field(ge=0, le=2**32 - 1), BeforeValidator(as_integer)] = Field(
        0, description="Seed of initialization, row order and dropout, 0 to 4294967295."
    )
    select: Literal["best", "last"] = Field(
        "best", description="Weights that the run saves: those of the best epoch by validation score, or the last."
    )
    eval_steps: Count | None = Field(
        None,
        description="Evaluate every so many optimizer steps, and before the first one, besides the end of each epoch. "
        "null: at the end of each epoch alone.",
    )
    save_steps: Count | None = Field(
        None,
        description="Write a checkpoint every so many optimizer steps, besides the end of each epoch and every ten "
        "minutes. null: without them.",
    )
    patience: Count | None = Field(
        None,
        description="Stop when so many evaluations in a row bring no better validation score. null: never.",
    )
    device: Text = Field("auto", description="auto, cpu, mps, cuda or cuda:N; auto takes an accelerator if one exists.")
    report_to: Annotated[list[Text], BeforeValidator(as_list)] = Field(
        [], description="Experiment trackers of transformers to log to, such as tensorboard or wandb."
    )


class RecipeSections(Section):
    """All sections and the output directory; each key is checked alone."""

    model: ModelSection = Field(description=str(ModelSection.__doc__))
    task: TaskSection = Field(description=str(TaskSection.__doc__))
    method: MethodSection = Field(description=str(MethodSection.__doc__))
    training: TrainingSection = Field(description=str(TrainingSection.__doc__))
    generation: GenerationSection | None = Field(None, description="Decoding; only for tasks that generate text.")
    preference: PreferenceSection | None = Field(None, description="Loss; only for the task preference.")
    output: Text = Field(description="Run directory to write. Default: runs/TASK-METHOD.")

    @model_serializer(mode="wrap")
    def _write(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The sections by name; `generation` and `preference` only for the tasks that have them."""
        return {key: value for key, value in write(self).items() if value is not None}


SECTIONS: dict[str, type[BaseModel]] = {
    "model": ModelSection,
    "task": TaskSection,
    "method": MethodSection,
    "training": TrainingSection,
    "generation": GenerationSection,
    "preference": PreferenceSection,
}
