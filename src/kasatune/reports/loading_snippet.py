"""Python code for adapter/README.md that loads the adapter with transformers and PEFT, without kasatune."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from kasatune.errors import AdapterError
from kasatune.io.run_layout import ADAPTER
from kasatune.reports.loading_snippet_text import text_snippet
from kasatune.reports.run_record import RunRecord
from kasatune.reports.snippet_code import base_expression, head_lines, literal, source_options


def label_names(run: RunRecord) -> list[str]:
    """The labels in the order of the logits; "0", "1", ... if metrics.json does not name them.

    Raises:
        AdapterError: metrics.json does not name them, and the adapter has no head from which to count them.
    """
    names = run.metrics.get("label_names")
    if names:
        return [str(name) for name in names]
    return [str(number) for number in range(_head_rows(run.run_dir / ADAPTER / "adapter_model.safetensors"))]


def loading_snippet(run: RunRecord) -> str:
    """A complete Python program that loads base and adapter and predicts for one text, without kasatune.

    Raises:
        AdapterError: the number of labels is unknown.
    """
    if run.task_kind == "generation":
        return text_snippet(run)
    model = run.recipe.get("model", {})
    regression = run.task_kind == "regression"
    names = [] if regression else label_names(run)
    options = [f"num_labels={1 if regression else len(names)}"]
    if regression:
        options.append('problem_type="regression"')
    else:
        options.append("id2label=dict(enumerate(labels))")
        options.append("label2id={label: number for number, label in enumerate(labels)}")
    source = source_options(model)
    options += [*source, f'dtype="{model.get("dtype", "float32")}"']
    output = (
        "print(logits.item())"
        if regression
        else "print(model.config.id2label[logits.argmax(-1).item()], logits.softmax(-1).tolist()[0])"
    )
    texts = ", ".join(map(literal, example_texts(run)))
    read = f'tokenizer({texts}, truncation=True, max_length={_max_length(run)}, return_tensors="pt")'
    reads, tokenizer_at = [f"inputs = {read}"], ", ".join(["base", *source])
    if run.is_reward:
        reads = [
            "messages = [",
            *(
                f'    {{"role": "{role}", "content": {literal(text)}}},'
                for role, text in zip(("user", "assistant"), example_texts(run), strict=True)
            ),
            "]",
            'inputs = tokenizer.apply_chat_template(messages, return_dict=True, return_tensors="pt")',
        ]
        tokenizer_at = "adapter"  # with the chat template of the run
    return "\n".join(
        [
            *head_lines(run, "AutoModelForSequenceClassification"),
            f"base = {base_expression(model)}",
            *([] if regression else [f"labels = {literal(names)}"]),
            "",
            f"tokenizer = AutoTokenizer.from_pretrained({tokenizer_at})",
            "model = AutoModelForSequenceClassification.from_pretrained(",
            "    base,",
            *(f"    {option}," for option in options),
            ")",
            "if tokenizer.pad_token is None:",
            "    tokenizer.pad_token = tokenizer.eos_token",
            "model.config.pad_token_id = tokenizer.pad_token_id  # a decoder reads the last token that is not padding",
            "model = PeftModel.from_pretrained(model, adapter).eval()",
            "",
            *reads,
            "with torch.no_grad():",
            "    logits = model(**inputs).logits",
            output,
        ]
    )


def example_texts(run: RunRecord) -> tuple[str, ...]:
    """A text to show in examples, or two for tasks on pairs of texts."""
    if run.task_kind == "generation":
        return ("Once upon a time",)
    if run.is_reward:
        return ("Name a colour.", "Blue.")
    return ("The first text.", "The second text.") if run.metrics.get("text_fields") == 2 else ("A text to score.",)


def _max_length(run: RunRecord) -> int:
    return int(run.recipe.get("task", {}).get("max_length") or 512)


def _head_rows(path: Path) -> int:
    """Number of rows of the head's weight: the saved matrix of the classifier that is not part of LoRA."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
    except (OSError, struct.error, json.JSONDecodeError) as error:
        raise AdapterError(f"{path}: the adapter cannot be read ({error}); train again") from None
    shapes = {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
    heads = {
        name: shape
        for name, shape in shapes.items()
        if len(shape) == 2
        and any(f".{part}." in f".{name}" for part in ("classifier", "score"))
        and "lora_" not in name
    }
    if not heads:
        raise AdapterError(f"{path}: contains no classification head, so the number of labels is unknown; train again")
    return min(shape[0] for shape in heads.values())
