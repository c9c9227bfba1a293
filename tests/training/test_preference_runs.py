"""Runs of the task preference through TRL's DPOTrainer: the reference, the losses, the scores and the files."""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import set_seed

from kasatune.data.tasks import load_task
from kasatune.data.tokenize_pairs import with_reference
from kasatune.errors import DataError, RecipeError
from kasatune.evaluation.evaluate import evaluate
from kasatune.evaluation.predict import predict
from kasatune.evaluation.task_model import TaskModel
from kasatune.methods.shared.trained_parameters import trainable
from kasatune.methods.table import METHODS
from kasatune.recipes.text_sections import PreferenceLoss
from kasatune.reports.card import write_card
from kasatune.reports.run_page import write_report
from kasatune.runs.metrics import read_metrics
from kasatune.training.plan import make_plan
from kasatune.training.train import train
from tests.text_toys import make_llama
from tests.training.preference_rows import pair_recipe
from tests.training.test_instruction_runs import events

pytest.importorskip("trl")

from kasatune.training.engines.preference import ENGINE, PreferenceRunTrainer
from kasatune.training.engines.run_trainer import RunHooks

LN2 = math.log(2)
ADMITTED = [info.name for info in METHODS.values() if "generation" in info.kinds and not info.no_preference]
REFUSED = [info.name for info in METHODS.values() if info.name not in ADMITTED]


def prepared(recipe):
    """The model of a recipe before its first step, its rows, and its trainer."""
    data = load_task(recipe.task)
    task_model = TaskModel.for_training(recipe, data)
    examples = {split: task_model.encode(data, split) for split in ("train", "validation")}
    set_seed(recipe.training.seed)
    task_model.method.prepare(task_model.model.eval(), recipe.method, task_model.batches(examples["train"]))
    before = task_model.log_probabilities(examples["train"])
    rows = {split: with_reference(row, *task_model.log_probabilities(row)) for split, row in examples.items()}
    hooks = RunHooks(task_model.method, recipe.method, (), None, dict, dict)
    arguments = ENGINE.training_arguments(recipe, Path(recipe.output), torch.device("cpu"))
    return task_model, rows, before, ENGINE.make_trainer(task_model, rows, arguments, hooks, ())


def loss_and_log_probabilities(trainer, rows):
    """The loss of all rows in one batch as in training, and the policy's log-probabilities in it."""
    trainer.model.train()
    batch = trainer.data_collator([dict(row) for row in rows.rows])
    with torch.no_grad():
        loss = float(trainer.compute_loss(trainer.model, batch))
    means = [trainer._metrics["train"][f"logps/{kind}"][-1] for kind in ("chosen", "rejected")]
    return loss, means


def mean(values):
    return sum(values) / len(values)


SMALL = {"oplora": {"options": {"k": 4}}}  # settings for layers of 16 outputs

CHANGE = {"adalora": 0.5}  # deviation of the change that stands for training; P E Q is of third order in it


@pytest.fixture(scope="module")
def biased(tmp_path_factory):
    """A Llama with biases, which bitfit trains."""
    return make_llama(tmp_path_factory.mktemp("models") / "biased", attention_bias=True)


@pytest.mark.parametrize("name", ADMITTED)
def test_an_unchanged_policy_starts_at_ln_2_and_is_not_moved(biased, tmp_path, name):
    targets = {"target_modules": ["q_proj", "v_proj"]} if "target_modules" in METHODS[name].uses else {}
    method = {"name": name, **targets, **SMALL.get(name, {})}
    recipe = pair_recipe(biased, tmp_path, method=method, number=4)
    task_model, rows, before, trainer = prepared(recipe)
    loss, means = loss_and_log_probabilities(trainer, rows["train"])
    assert loss == pytest.approx(LN2, abs=1e-4)
    assert means == pytest.approx([mean(before.chosen), mean(before.rejected)], abs=1e-4)

    generator = torch.Generator().manual_seed(3)  # a trained adapter that is continued
    with torch.no_grad():
        for parameter in trainable(task_model.model).values():
            parameter.add_(CHANGE.get(name, 0.05) * torch.randn(parameter.shape, generator=generator))
    trained = task_model.log_probabilities(rows["train"])
    assert trained.chosen != pytest.approx(before.chosen, abs=1e-3)
    assert loss_and_log_probabilities(trainer, rows["train"])[0] != pytest.approx(LN2, abs=1e-4)
    loss, means = loss_and_log_probabilities(trainer, with_reference(rows["train"], *trained))
    assert loss == pytest.approx(LN2, abs=1e-4)
    assert means == pytest.approx([mean(trained.chosen), mean(trained.rejected)], abs=1e-4)


@pytest.mark.parametrize("name", REFUSED)
def test_other_methods_are_refused_by_name_with_the_reason(llama, tmp_path, name):
    with pytest.raises(RecipeError, match=f'method.name: "{name}" received; it cannot do preference') as refusal:
        pair_recipe(llama, tmp_path, method={"name": name})
    assert (METHODS[name].no_preference or METHODS[name].unable) in str(refusal.value)


# The losses of a policy that equals its reference, by their equations.
AT_THE_REFERENCE = {
    "sigmoid": LN2,
    "hinge": 1.0,
    "ipo": (1 / (2 * 0.1)) ** 2,
    "exo_pair": 0.5 * (math.log(0.5) - math.log(0.9)) + 0.5 * (math.log(0.5) - math.log(0.1)),
    "nca_pair": 2 * LN2,
    "robust": LN2,
    "bco_pair": 2 * LN2,
    "sppo_hard": 2 * (0.5 / 0.1) ** 2,
    "aot": LN2,
    "aot_unpaired": LN2,
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "discopop": 0.5 * LN2 + 0.5,
    "sigmoid_norm": LN2,
}


def test_every_loss_of_trl_is_offered_and_starts_at_its_value(llama, tmp_path):
    recipe = pair_recipe(llama, tmp_path, preference={"label_smoothing": 0.1}, number=4)
    _, rows, before, trainer = prepared(recipe)
    offered = list(PreferenceLoss.__args__)
    assert set(AT_THE_REFERENCE) | {"sft"} == set(offered)
    tokens = [len(row["chosen_ids"]) for row in rows["train"].rows]
    expected = {**AT_THE_REFERENCE, "sft": -sum(before.chosen) / sum(tokens)}
    for loss in offered:
        trainer.loss_types = [loss]
        assert loss_and_log_probabilities(trainer, rows["train"])[0] == pytest.approx(expected[loss], abs=2e-3), loss
    trainer.loss_types = ["another"]
    with pytest.raises(ValueError) as refusal:
        loss_and_log_probabilities(trainer, rows["train"])
    assert all(f"'{loss}'" in str(refusal.value) for loss in offered)
    assert str(refusal.value).count("'") == 2 * len(offered)


def test_a_run_learns_is_scored_again_and_answers(llama, tmp_path):
    recipe = pair_recipe(
        llama,
        tmp_path / "d",
        method={"r": 4, "target_modules": "all-linear"},
        preference={"loss": ["sigmoid", "sft"], "loss_weights": [1.0, 0.1], "beta": 0.5},
        epochs=4,
    )
    plan = make_plan(recipe)
    assert not plan.problems and (plan.rows, plan.steps_per_epoch, plan.steps) == (16, 2, 8)
    run = train(recipe, tmp_path / "run")
    write_report(run)
    write_card(run)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "margin of the rewards" in page and "say" in page
    metrics = read_metrics(run)
    assert list(metrics["metrics"]) == ["accuracy", "margin", "loss"]
    steps = events(run, "train")
    assert steps[0]["loss"] > LN2  # of the two losses together
    assert metrics["metrics"]["loss"] < 0.5 < LN2
    assert metrics["metrics"]["accuracy"] > 0.8
    assert evaluate(run)["metrics"] == metrics["metrics"]
    assert "reference" in metrics["seconds"]
    answers = json.loads((run / "predictions.json").read_text())
    assert len(answers["scores"]) == 10 and len(answers["inputs"]) == 8
    margins = [chosen - rejected for chosen, rejected in answers["scores"]]
    assert mean(margins) == pytest.approx(metrics["metrics"]["margin"])
    assert predict(run, answers["inputs"][:1])[0]["prediction"]["text"] == answers["predictions"][0]
    assert (run / "adapter" / "adapter_model.safetensors").is_file()
    other = evaluate(run, data=str(tmp_path / "d" / "train.json"))  # rows without a stored reference
    assert other["metrics"]["loss"] < 0.5
    stored = json.loads((run / "reference.json").read_text())
    stored["validation"]["chosen"][0] += 1.0
    (run / "reference.json").write_text(json.dumps(stored))
    with pytest.raises(DataError, match="cannot be built again"):
        evaluate(run, data=str(tmp_path / "d" / "train.json"))
    (run / "reference.json").write_text("{}"[:1])
    with pytest.raises(DataError, match="missing or damaged"):
        evaluate(run)


@pytest.mark.parametrize("loss", ["sigmoid", "nca_pair"])
def test_pairs_that_repeat_earlier_ones_change_no_gradient(llama, tmp_path, loss):
    """The last batch of an epoch is filled with repeated rows where several processes share it."""
    _, rows, _, trainer = prepared(pair_recipe(llama, tmp_path, number=4, preference={"loss": loss}))

    def gradients(chosen, counted):
        batch = trainer.data_collator([dict(row) for row in chosen])
        assert trainer.mask_repeated_rows(batch, counted) == counted
        trainer.model.zero_grad()
        trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(6)).backward()
        return torch.cat([p.grad.flatten() for p in trainable(trainer.model).values() if p.grad is not None])

    three = gradients(rows["train"].rows[:3], 3)
    assert three.count_nonzero() > 0
    assert torch.allclose(gradients(rows["train"].rows, 3), three, atol=1e-6)
    assert gradients(rows["train"].rows[:2], 0).count_nonzero() == 0


def test_a_quantized_base_with_checkpointing_starts_at_its_policy_with_adapters_in_float32(llama, tmp_path):
    pytest.importorskip("bitsandbytes", reason="needs the extra kasatune[quant]")
    recipe = pair_recipe(llama, tmp_path, quantization="nf4", number=4, gradient_checkpointing=True)
    task_model, rows, before, trainer = prepared(recipe)
    loss, means = loss_and_log_probabilities(trainer, rows["train"])
    assert loss == pytest.approx(LN2, abs=1e-4)
    assert means == pytest.approx([mean(before.chosen), mean(before.rejected)], abs=1e-4)
    assert {parameter.dtype for parameter in trainable(task_model.model).values()} == {torch.float32}


def test_pieces_of_a_step_and_a_short_last_step_give_the_same_weights(llama, tmp_path):
    runs = [
        train(pair_recipe(llama, tmp_path / "d", number=11, gradient_accumulation=pieces), tmp_path / f"in-{pieces}")
        for pieces in (1, 4)
    ]
    one, other = ([event["loss"] for event in events(run, "train")] for run in runs)
    assert len(one) == 2 and one == pytest.approx(other, abs=1e-4)
    scores = [read_metrics(run)["metrics"]["margin"] for run in runs]
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)


def test_the_weights_of_a_stopped_run_are_those_of_an_uninterrupted_one(llama, tmp_path, monkeypatch):
    recipe = pair_recipe(llama, tmp_path / "d", epochs=2, save_steps=1)
    whole = train(recipe, tmp_path / "whole")
    step = PreferenceRunTrainer.training_step

    def stop_at_third(self, *args, **kwargs):
        if self.state.global_step == 2:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(PreferenceRunTrainer, "training_step", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "stopped")
    monkeypatch.undo()
    resumed = train(recipe, tmp_path / "stopped", resume=True)
    assert read_metrics(resumed)["metrics"] == read_metrics(whole)["metrics"]
    assert (resumed / "reference.json").read_bytes() == (whole / "reference.json").read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preference": {"loss": "exo_pair"}}, "exo_pair needs a value above 0"),
        ({"preference": {"loss": ["sigmoid", "sft"], "loss_weights": [1.0]}}, "1 weight received for 2 losses"),
        ({"preference": {"loss": "nca_pair", "divergence": "forward_kl"}}, "nca_pair is defined for reverse_kl alone"),
        ({"preference": {"loss": "aot", "weighting": True}}, "aot sorts its pairs"),
        ({"preference": {"loss": "dpo"}}, "preference.loss"),
        ({"method": {"dropout": 0.1}}, "without any dropout"),
        ({"method": {"anneal": 0.5}}, "method.anneal: 0.5 received; preference compares"),
        ({"method": {"name": "akasa", "drop": 2, "anneal": 1.0}}, "method.anneal: 1 received; preference compares"),
        ({"task": "reward", "preference": {"beta": 0.2}}, "preference: reward has no such loss"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, changes, message):
    with pytest.raises(RecipeError, match=message):
        pair_recipe("unused", tmp_path, **changes)


def test_a_reward_model_has_no_reference_and_can_be_annealed(tmp_path):
    assert pair_recipe("unused", tmp_path, task="reward", method={"anneal": 0.5}).method.anneal == 0.5
