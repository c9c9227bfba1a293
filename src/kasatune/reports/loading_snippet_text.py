"""Python code for adapter/README.md that generates text with a causal language model and the adapter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from kasatune.data.tasks.table import TASKS
from kasatune.io.run_layout import ADAPTER
from kasatune.reports.run_record import RunRecord
from kasatune.reports.snippet_code import base_expression, head_lines, literal, source_options

_EXAMPLE = "Once upon a time"
_NGRAM_LIMIT = """
class NoRepeatInNewText(LogitsProcessor):  # transformers' own limit also counts the n-grams of the prompt
    def __call__(self, input_ids, scores):
        return NoRepeatNGramLogitsProcessor({size})(input_ids[:, length:], scores)
"""


def text_snippet(run: RunRecord) -> str:
    """A complete Python program that loads base and adapter and answers the first prompt of predictions.json.

    It needs no kasatune, asks as the training did, with the tokenizer and the chat template that were saved with the
    adapter, and searches and stops as the run's evaluation did.
    """
    model = run.recipe.get("model", {})
    source = source_options(model)
    options = [*source, f'dtype="{model.get("dtype", "float32")}"']
    size = int(_decoding(run).get("no_repeat_ngram_size") or 0)
    further = ", ".join(["GenerationConfig", *(["LogitsProcessor", "NoRepeatNGramLogitsProcessor"] if size else [])])
    return "\n".join(
        [
            *head_lines(run, "AutoModelForCausalLM", further),
            f"base = {base_expression(model)}",
            "",
            f"tokenizer = AutoTokenizer.from_pretrained({', '.join(_tokenizer_arguments(run))})",
            f"model = AutoModelForCausalLM.from_pretrained({', '.join(['base', *options])})",
            "model.generation_config = GenerationConfig(",
            *(f"    {name}={value}," for name, value in _settings(run).items()),
            ")",
            "model = PeftModel.from_pretrained(model, adapter).eval()",
            "",
            *_prompt_lines(run),
            "length = ids.shape[1]",
            *(_NGRAM_LIMIT.format(size=size).splitlines() if size else []),
            *(["", ""] if size else []),
            f"with {', '.join(['torch.no_grad()', *_autocast(run)])}:",
            "    output = model.generate(",
            "        input_ids=ids,",
            "        attention_mask=torch.ones_like(ids),",
            *(["        logits_processor=[NoRepeatInNewText()],"] if size else []),
            "    )",
            "ends = model.generation_config.eos_token_id",
            "answer = [token for token in output[0, length:].tolist() if token not in ends]",
            "print(tokenizer.decode(answer, skip_special_tokens=True).strip())",
        ]
    )


def _tokenizer_arguments(run: RunRecord) -> list[str]:
    model = run.recipe.get("model", {})
    if not _has_tokenizer(run):
        return ["base", *source_options(model)]
    return ["adapter", *(["trust_remote_code=True"] if model.get("trust_remote_code") else [])]


def _settings(run: RunRecord) -> dict[str, Any]:
    """The arguments of GenerationConfig, as code."""
    recipe, measured = _decoding(run), _measured(run)
    settings: dict[str, Any] = {"max_new_tokens": recipe.get("max_new_tokens", 64)}
    if recipe.get("num_beams", 1) > 1:
        settings |= {"num_beams": recipe["num_beams"], "length_penalty": recipe.get("length_penalty", 1.0)}
    ends = measured.get("eos_token_id")
    return {
        **settings,
        "eos_token_id": ends if isinstance(ends, list) else "[tokenizer.eos_token_id]",
        "pad_token_id": "tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id",
    }


def _prompt_lines(run: RunRecord) -> list[str]:
    """Code that makes `ids` (1, length) from the first prompt."""
    measured = _measured(run)
    limit = measured.get("max_prompt_tokens") or run.recipe.get("task", {}).get("max_length") or 512
    special = ""
    inputs = run.predictions.get("inputs") or [_EXAMPLE]
    chats = run.predictions.get("messages") or [[{"role": "user", "content": str(inputs[0])}]]
    if _asks_in_chats(run) and chats[0] is not None and _has_tokenizer(run):
        lines = [
            "messages = [",
            *(f"    {json.dumps(message, ensure_ascii=False)}," for message in chats[0]),
            "]",
            "prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)",
        ]
        special = ", add_special_tokens=False"
    else:
        lines = [f"prompt = {literal(str(inputs[0]))}"]
    lines.append(f'ids = tokenizer(prompt{special}, return_tensors="pt")["input_ids"]')
    if not special and measured.get("tokenizer_ends_prompts"):
        lines.append("ids = ids[:, :-1] if ids[0, -1] == tokenizer.eos_token_id else ids")
    return [*lines, f"ids = ids[:, -{limit}:]  # the beginning of a longer prompt is not read"]


def _asks_in_chats(run: RunRecord) -> bool:
    """Whether the first prompt of predictions.json is a conversation."""
    tasks = run.predictions.get("tasks") or {}
    info = TASKS.get(tasks.get(_first_part(run), run.task_name))
    return info is not None and info.uses_chat_template


def _first_part(run: RunRecord) -> str | None:
    """The part of a mixture that the first prompt of predictions.json belongs to; None for other tasks."""
    return next(iter(run.predictions.get("parts") or ()), None)


def _decoding(run: RunRecord) -> Mapping[str, Any]:
    """The decoding of the first prompt: that of its part, or the recipe's section `generation`."""
    own = (_measured(run).get("parts") or {}).get(_first_part(run))
    return own or run.recipe.get("generation") or {}


def _autocast(run: RunRecord) -> list[str]:
    precision = run.recipe.get("training", {}).get("precision", "float32")
    return [] if precision == "float32" else [f"torch.autocast(model.device.type, dtype=torch.{precision})"]


def _measured(run: RunRecord) -> Mapping[str, Any]:
    """How the texts of predictions.json were generated; empty for runs that were stopped early."""
    return run.metrics.get("generation") or {}


def _has_tokenizer(run: RunRecord) -> bool:
    return (run.run_dir / ADAPTER / "tokenizer_config.json").is_file()
