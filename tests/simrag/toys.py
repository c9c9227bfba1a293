"""A tiny Llama that knows the words of a small corpus, rows for stage I, questions, and a recipe."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from kasatune.simrag import prompts

LANDS = 12
FILLER = "river{0} crosses plain{0} and hill{0} near lake{0} where fisher{0} sells fish{0} ."

RECIPE = """
model: {name: model}
method: {name: lora, r: 2, alpha: 4, target_modules: all-linear}
training: {epochs: 1, batch_size: 8, eval_batch_size: 4, learning_rate: 0.01, device: cpu}
corpus: {documents: documents.jsonl, chunk_words: 20, chunk_overlap: 4, passages: 2, max_length: 160}
stage_one: {instructions: instructions.jsonl, context_qa: context.jsonl}
stage_two: {chunks: 16, answers_per_chunk: 1}
evaluation: {questions: questions.jsonl, count: 3, max_new_tokens: 4}
"""


def text_of(land: int) -> str:
    return f"the capital of land{land} is town{land} . {FILLER.format(land)}"


def write_work_folder(folder: Path) -> Path:
    """Everything that the recipe names."""
    documents = [{"id": f"land{land}", "text": text_of(land)} for land in range(LANDS)]
    instructions = [{"instruction": f"say town{land}", "output": f"town{land}"} for land in range(4)]
    context = [
        {"context": f"old port{n} lies by bay{n}", "question": f"where does port{n} lie", "answer": f"bay{n}"}
        for n in range(4)
    ]
    questions = [
        {"question": f"what is the capital of land{land}", "answer": f"town{land}", "document": document}
        for land, document in ((0, "land0"), (1, None), (2, "land2"))
    ]
    for name, rows in (
        ("documents", documents),
        ("instructions", instructions),
        ("context", context),
        ("questions", questions),
    ):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(RECIPE)
    templates = [value for name, value in vars(prompts).items() if isinstance(value, str) and not name.startswith("__")]
    _make_llama(folder / "model", " ".join([json.dumps([documents, instructions, context, questions]), *templates]))
    return folder


def _make_llama(folder: Path, text: str) -> None:
    words = ["<s>", "</s>", "<unk>", *sorted(set(re.findall(r"\w+|[^\w\s]", text)))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


class ScriptedWriter:
    """Takes the place of `generate`: answers with the town of the passage and asks for it by the name of the land.

    Args:
        fail_after: raise KeyboardInterrupt instead of writing this batch, counted from 0; None to write all.
        answer: pattern of the answers.
    """

    def __init__(self, fail_after: int | None = None, answer: str = r"town\d+|lake\d+|fish\d+") -> None:
        self.batches = 0
        self._fail_after, self._answer = fail_after, answer

    def __call__(self, model: Any, tokenizer: Any, rows: list[list[int]], *_: Any, **__: Any) -> list[str]:
        if self.batches == self._fail_after:
            raise KeyboardInterrupt
        self.batches += 1
        return [self._write(tokenizer.decode(row)) for row in rows]

    def _write(self, prompt: str) -> str:
        passage = prompt.partition("Passage")[2]
        if "Copy a short answer" in prompt:
            found = re.search(self._answer, passage)
            return found.group() if found else "nothing"
        answer = re.findall(r"\w+\d+", passage)[-1]
        land = re.search(r"\d+", answer).group()
        if "Write a true statement" in prompt:
            return f"one can see {answer} when river{land} crosses plain{land}"
        return f"what is there where river{land} crosses plain{land} and land{land}"
