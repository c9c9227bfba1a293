"""Python code for adapter/README.md that generates text with a causal language model and the adapter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kasatune.reports.run_record import RunRecord
from kasatune.reports.snippet_code import base_expression, head_lines, literal, source_options
from kasatune.wording import counted

_LONGEST = 300  # characters of the example prompt


def text_snippet(run: RunRecord) -> str:
    """A complete Python program that loads base and adapter and continues one prompt, without kasatune."""
    model = run.recipe.get("model", {})
    decoding: dict[str, Any] = dict(run.recipe.get("generation") or {})
    limit = decoding.pop("no_repeat_ngram_size", 0)
    source = source_options(model)
    options = [*source, f'dtype="{model.get("dtype", "float32")}"']
    note = (
        f"# The scored texts do not repeat an n-gram of {counted(limit, 'token')}. no_repeat_ngram_size is not "
        "set here, because\n"
        "# transformers also counts the n-grams of the prompt."
    )
    return "\n".join(
        [
            *head_lines(run, "AutoModelForCausalLM"),
            f"base = {base_expression(model)}",
            "",
            f"tokenizer = AutoTokenizer.from_pretrained({', '.join(['base', *source])})",
            f"model = AutoModelForCausalLM.from_pretrained({', '.join(['base', *options])})",
            "model = PeftModel.from_pretrained(model, adapter).eval()",
            "",
            f"prompt = {literal(example_prompt(run.predictions.get('inputs') or ()))}",
            'inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)',
            *([note] if limit else []),
            "with torch.no_grad():",
            "    output = model.generate(",
            "        **inputs,",
            "        do_sample=False,",
            *(f"        {name}={value}," for name, value in decoding.items()),
            "        pad_token_id=tokenizer.eos_token_id,",
            "    )",
            'answer = output[0, inputs["input_ids"].shape[1] :]',
            "print(tokenizer.decode(answer, skip_special_tokens=True).strip())",
        ]
    )


def example_prompt(inputs: Sequence[str]) -> str:
    """The first prompt that is short enough for an example."""
    return next((str(prompt) for prompt in inputs if len(str(prompt)) <= _LONGEST), "Once upon a time")
