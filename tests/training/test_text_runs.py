"""Runs that train a causal language model: their files, the scores again, resuming, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from kasatune.adapter_tools.merge import merge
from kasatune.adapter_tools.verify import verify
from kasatune.cli.run_summary import write_pages
from kasatune.errors import InputError, ModelError, RecipeError
from kasatune.evaluation.evaluate import evaluate
from kasatune.evaluation.predict import predict
from kasatune.evaluation.task_model import TaskModel
from kasatune.methods import METHODS
from kasatune.runs.directory import read_recipe
from kasatune.runs.metrics import read_metrics
from kasatune.training.plan import make_plan
from kasatune.training.train import train
from tests.text_toys import lines, make_text_recipe
from tests.toys import Recorder

BEAMS = {"num_beams": 3, "length_penalty": 0.8, "no_repeat_ngram_size": 3}


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp(f"run-{request.param}")
    recipe = make_text_recipe(request.getfixturevalue(request.param), place / "data", generation=BEAMS)
    out = train(recipe, place / "run")
    write_pages(out)
    return out


def test_the_metrics_are_those_of_text_and_of_loss(run):
    found = read_metrics(run)
    assert list(found["metrics"]) == ["bleu", "nist", "rouge_l", "cider", "loss", "perplexity"]
    assert found["selected"]["rule"] == "best"
    assert set(found["selected"]["metrics"]) == {"loss", "perplexity"}
    assert found["metrics"]["loss"] == found["selected"]["metrics"]["loss"]
    assert found["head_parameters"] == 0
    settings = found["generation"]
    assert {**settings, **BEAMS, "max_new_tokens": 5, "do_sample": False, "batch_size": 4} == settings


def test_evaluate_repeats_the_scores_exactly(run):
    assert evaluate(run)["metrics"] == read_metrics(run)["metrics"]


def test_predict_writes_what_was_scored(run):
    kept = json.loads((run / "predictions.json").read_text())
    found = predict(run, kept["inputs"])
    assert [one["prediction"]["text"] for one in found] == kept["predictions"]
    assert all("truncated" not in one for one in found)
    assert predict(run, ["say " + "red " * 30 + ":"])[0]["truncated"] is True


def test_the_adapter_is_stock_lora_for_causal_models(run):
    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert (config["task_type"], config["peft_type"]) == ("CAUSAL_LM", "LORA")
    base = read_recipe(run).model.name
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), run / "adapter").eval()
    ours = TaskModel.for_saved_run(read_recipe(run), None, run).model.eval()
    tokens = torch.tensor([[0, 5, 6, 7]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, ours(tokens).logits, atol=1e-5, rtol=1e-5)


def test_the_cards_code_writes_what_the_run_writes(run, tmp_path):
    card = (run / "adapter" / "README.md").read_text()
    assert "pipeline_tag: text-generation" in card
    code = card.split("```python\n")[1].split("```")[0]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=run / "adapter", capture_output=True, text=True, timeout=120, check=True
    )
    assert isinstance(done.stdout, str)
    assert "kasatune" not in code


def test_the_page_shows_examples_and_how_they_were_written(run):
    page = (run / "report.html").read_text()
    kept = json.loads((run / "predictions.json").read_text())
    assert kept["inputs"][0] in page
    assert "num beams 3" in page
    assert "num beams 3" in (run / "README.md").read_text()


def test_verify_passes_and_the_merge_is_a_causal_model(run, tmp_path):
    assert not [check for check in verify(run) if check.passed is False]
    merge(run, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    ours = TaskModel.for_saved_run(read_recipe(run), None, run).model.eval()
    tokens = torch.tensor([[0, 5, 6, 7]])
    with torch.no_grad():
        torch.testing.assert_close(merged(tokens).logits, ours(tokens).logits, atol=1e-4, rtol=1e-4)


def test_the_plan_counts_what_is_trained(run):
    plan = make_plan(read_recipe(run))
    assert plan.trainable_parameters == read_metrics(run)["trainable_parameters"]
    assert (plan.head_parameters, plan.problems) == (0, ())


def test_the_plan_counts_the_logits_of_a_large_vocabulary(llama, tmp_path):
    from tests.text_toys import make_llama

    wide = make_llama(tmp_path / "wide", vocab_size=5000)
    small, large = (
        make_plan(make_text_recipe(model, tmp_path / f"data-{model.name}"), before_training=True).memory_bytes[
            "activations"
        ]
        for model in (llama, wide)
    )
    assert large - small == 2 * 8 * 24 * (5000 - 17) * 4


def test_equal_prompts_are_one_input_with_several_references(llama, tmp_path):
    recipe = make_text_recipe(llama, tmp_path / "data", max_steps=1)
    rows = [{"question": "say red :", "answer": answer} for answer in ("one", "two")]
    (tmp_path / "data" / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept = json.loads((train(recipe, tmp_path / "run") / "predictions.json").read_text())
    assert (kept["inputs"], kept["labels"]) == (["say red :"], [["one", "two"]])
    assert len(kept["predictions"]) == 1


def test_pieces_of_a_step_do_not_change_the_training(llama, tmp_path):
    whole, cut = (
        json.loads(
            (
                train(
                    make_text_recipe(llama, tmp_path / f"data{pieces}", gradient_accumulation=pieces, max_steps=3),
                    tmp_path / f"run{pieces}",
                )
                / "metrics.json"
            ).read_text()
        )["metrics"]["loss"]
        for pieces in (1, 4)
    )
    assert whole == pytest.approx(cut, rel=1e-5)


def test_a_resumed_run_ends_like_one_that_was_not_stopped(llama, tmp_path, monkeypatch):
    recipe = make_text_recipe(llama, tmp_path / "data", epochs=2)
    straight = read_metrics(train(recipe, tmp_path / "straight"))
    stop = Recorder()

    def interrupt(step, *_):
        stop.steps.append(step)
        if step == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(stop, "step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "resumed", display=stop)
    assert read_metrics(train(recipe, tmp_path / "resumed", resume=True))["metrics"] == straight["metrics"]


def test_training_learns_to_copy(llama, tmp_path):
    recipe = make_text_recipe(
        llama, tmp_path / "data", train=96, validation=9, epochs=5, method={"r": 8, "target_modules": "all-linear"}
    )
    found = read_metrics(train(recipe, tmp_path / "run"))
    events = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    losses = [event["loss"] for event in events if event["event"] == "train"]
    assert found["metrics"]["loss"] < 0.6 * losses[0]


def test_cut_rows_are_reported_and_counted(llama, tmp_path):
    recorder = Recorder()
    run = train(
        make_text_recipe(llama, tmp_path / "data", task={"max_length": 6}, max_steps=1),
        tmp_path / "run",
        display=recorder,
    )
    assert any("longer than 6 tokens and were cut" in message for message in recorder.messages)
    counts = read_metrics(run)["rows_cut"]
    # the beginning of a prompt is cut, so that no answer loses its end
    lengths = {"train": lines(24, seed=1), "validation": lines(9, seed=2)}
    for split, rows in lengths.items():
        tokens = [len(f"<s> {row['question']} {row['answer']} </s>".split()) for row in rows]
        cut = sum(number > 6 for number in tokens)
        assert 0 < cut < len(rows)
        assert counts[split] == {"rows": len(rows), "cut": cut, "without_end": 0}


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"head"}))
def test_every_method_trains_a_language_model_and_is_loaded_again(method, llama, tmp_path):
    options = {"ist": {"over": "lora"}, "oplora": {"k": 4}}.get(method, {})
    r = 2 if METHODS[method].uses else 8
    recipe = make_text_recipe(
        llama, tmp_path / "data", method={"name": method, "r": r, "options": options}, max_steps=2, train=16
    )
    try:
        out = train(recipe, tmp_path / "run")
    except InputError as refused:
        assert method in {"bitfit"}, refused
        return
    assert evaluate(out)["metrics"] == read_metrics(out)["metrics"]


def test_a_fitted_head_is_refused_with_the_reason(llama, tmp_path):
    with pytest.raises(RecipeError, match=r'"head" received; it cannot do text-generation.*already has a head'):
        make_text_recipe(llama, tmp_path / "data", method={"name": "head"})


def test_an_encoder_is_refused(bert, tmp_path):
    recipe = make_text_recipe(bert, tmp_path / "data")
    for act in (lambda: train(recipe, tmp_path / "run"), lambda: make_plan(recipe)):
        with pytest.raises(ModelError, match="'bert', which is not a causal language model"):
            act()
    assert not (tmp_path / "run").exists()


def test_decoding_settings_belong_to_tasks_that_write(tmp_path):
    from kasatune.recipes.schema import Recipe

    with pytest.raises(RecipeError, match="generation: glue/rte generates no text"):
        Recipe.model_validate({"model": {"name": "m"}, "task": {"name": "glue/rte"}, "generation": {"num_beams": 2}})
    with pytest.raises(RecipeError, match=r"task\.loss_on: \"everything\" received; glue/rte generates no text"):
        Recipe.model_validate({"model": {"name": "m"}, "task": {"name": "glue/rte", "loss_on": "everything"}})


def test_a_task_has_decoding_defaults_of_its_own():
    from kasatune.recipes.schema import Recipe

    recipe = Recipe.model_validate(
        {"model": {"name": "m"}, "task": {"name": "e2e"}, "generation": {"num_beams": 2}}
    ).model_dump()
    assert recipe["generation"] == {
        "max_new_tokens": 64,
        "num_beams": 2,
        "length_penalty": 0.8,
        "no_repeat_ngram_size": 4,
    }
    assert recipe["task"]["loss_on"] == "completion"
    plain = Recipe.model_validate({"model": {"name": "m"}, "task": {"name": "glue/rte"}}).model_dump()
    assert "generation" not in plain
