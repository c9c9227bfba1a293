"""Multiple choice: both protocols counted row by row, and log-likelihoods compared with lm-eval."""

from __future__ import annotations

import json
import math

import pytest

from kasatune.data.tasks.commonsense_prompts import EVALUATION_PROMPT, ranking
from kasatune.data.tasks.table import TASKS
from kasatune.evaluation.generate import generate
from kasatune.evaluation.loglikelihood import log_likelihoods
from kasatune.evaluation.multiple_choice import score_choices
from kasatune.evaluation.text_scores import GeneratedText
from kasatune.recipes.schema import Recipe
from kasatune.training.train import train
from tests.data.tasks.commonsense_toys import BOOLQ, OPENBOOKQA, write_commonsense
from tests.shared_data import shared


def test_every_row_counts_and_unparsed_text_is_wrong():
    prompts = [EVALUATION_PROMPT.format(OPENBOOKQA.format(index)) for index in range(3)]
    references = [[f"the correct answer is answer{one}" for one in own] for own in ("11", "2", "4")]
    texts = ["the correct answer is answer1", "who knows", "answer3, or answer4"]

    def likelihoods(pairs):
        assert [context for context, _ in pairs] == [f"item {index}" for index in (0, 1, 2) for _ in range(4)]
        # (red, blue, one, two): the longest is the likeliest letter by letter in the first question alone
        return [-6.0, -6.1, -5.9, -9.0, -8.0, -1.0, -8.0, -8.0, -5.0, -5.0, -4.0, -3.0]

    found = score_choices(
        TASKS["commonsense/openbookqa"], GeneratedText("test", prompts, texts, references), likelihoods
    )
    assert found.metrics == {"accuracy": 2 / 4, "acc": 2 / 4, "acc_norm": 2 / 4, "unparsed": 1 / 4}
    assert [one["written"] for one in found.details] == ["answer1", "", "answer3"]
    assert [one["acc"] for one in found.details] == ["answer3", "answer2", "answer4"]
    assert found.details[0]["acc_norm"] == "answer2"  # -6.1 / 4 letters


def test_mixture_split_uses_the_question_form_of_its_task():
    asked = []

    def likelihoods(pairs):
        asked.extend(pairs)
        return [0.0] * len(pairs)

    prompts = [EVALUATION_PROMPT.format(BOOLQ.format(1))]
    found = score_choices(TASKS["commonsense"], GeneratedText("boolq", prompts, ["false"], [["true"]]), likelihoods)
    assert asked == [("Question: is item 1 red?\nAnswer:", " no"), ("Question: is item 1 red?\nAnswer:", " yes")]
    assert found.details[0]["acc"] == "false"  # of equal ones the first
    assert found.metrics["accuracy"] == 0


@pytest.fixture(scope="module")
def real():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = shared("models/stories260K-hf")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return AutoModelForCausalLM.from_pretrained(folder).eval(), tokenizer


def real_prompts(task: str, number: int) -> list[str]:
    rows = json.loads(shared(f"commonsense/{task}/test.json").read_text(encoding="utf-8"))
    return [EVALUATION_PROMPT.format(one["instruction"]) for one in rows[:number]]


def test_log_likelihoods_equal_lm_evals(real):
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    assert lm_eval
    pairs = []
    for task in ("boolq", "openbookqa", "winogrande"):
        for prompt in real_prompts(task, 4):
            found = ranking(f"commonsense/{task}", prompt)
            assert found is not None
            pairs += found.pairs
    pairs.append(("Once upon a time  ", "there was"))  # blanks at the end of a context
    pairs.append(("word " * 600, " end"))  # longer than the model's positions
    model, tokenizer = real
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, device="cpu").loglikelihood(
        [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)], disable_tqdm=True
    )
    ours = log_likelihoods(model, tokenizer, pairs, batch_size=7)
    assert ours == pytest.approx([value for value, _ in theirs], abs=1e-3)


def test_batches_give_the_same_answers_as_single_prompts(real):
    class FourBeams:
        max_new_tokens, num_beams, length_penalty, no_repeat_ngram_size = 12, 4, 1.0, 0

    model, tokenizer = real
    prompts = real_prompts("openbookqa", 5)
    alone, together = (generate(model, tokenizer, prompts, FourBeams(), size, max_length=448) for size in (1, 5))
    assert alone == together and any(alone)
    pairs = [("Once upon a time", " there was a girl"), ("A", " b"), ("The sun is", " hot")]
    one, many = (log_likelihoods(model, tokenizer, pairs, size) for size in (1, 3))
    assert one == pytest.approx(many, abs=1e-4)


def test_run_reports_both_protocols_and_evaluate_repeats_them(llama, tmp_path):
    from kasatune.evaluation.evaluate import evaluate

    recipe = Recipe.model_validate(
        {
            "model": {"name": str(llama)},
            "task": {"name": "commonsense", "data": str(write_commonsense(tmp_path / "data")), "max_length": 56},
            "method": {"name": "kasa", "r": 2},
            "training": {"max_steps": 1, "batch_size": 4, "device": "cpu"},
            "generation": {"max_new_tokens": 4},
            "output": "unused",
        }
    )
    assert (recipe.generation.num_beams, recipe.generation.max_new_tokens) == (4, 4)
    run = train(recipe, tmp_path / "run")
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["metrics"]
    assert list(metrics)[:4] == ["accuracy", "acc", "acc_norm", "unparsed"]
    assert evaluate(run)["metrics"] == metrics
    kept = json.loads((run / "predictions.json").read_text(encoding="utf-8"))
    assert len(kept["scores"]) == len(kept["inputs"]) and set(kept["scores"][0]) == {"written", "acc", "acc_norm"}
    split = evaluate(run, split="boolq")["metrics"]
    assert 0 <= split["acc"] <= 1 and math.isfinite(split["loss"])
