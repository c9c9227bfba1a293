"""Runs of the mixtures from recipes: routing in history.jsonl and the report, the balance loss, refusals."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch
from transformers import BertTokenizer

from kasatune.adapter_tools.inspect_routing import inspect_routing
from kasatune.adapters.adapter_files import read_header
from kasatune.adapters.recognize_format import format_of
from kasatune.cli.commands.inspect import command as inspect_command
from kasatune.data.tasks import load_task
from kasatune.errors import AdapterError, InputError
from kasatune.evaluation.evaluate import evaluate
from kasatune.evaluation.task_model import TaskModel
from kasatune.mixtures import record_routing
from kasatune.reports.formatting import share
from kasatune.reports.routing_charts import routing_by_part
from kasatune.reports.run_page import write_report
from kasatune.reports.run_record import read_run
from kasatune.runs.metrics import read_metrics
from kasatune.training.train import train
from tests.mixtures.models import adapted, batch
from tests.text_toys import make_text_recipe
from tests.toys import make_recipe
from tests.training.test_instruction_runs import recipe as make_instruction_recipe
from tests.training.test_mixture_runs import make_mixture


@pytest.mark.parametrize("engine", ["classification", "instruction"])
def test_a_run_shows_who_was_chosen(engine, bert, llama, tmp_path, capsys):
    method = {"name": "milora-moe", "r": 2, "options": {"balance_weight": 1.0}}
    if engine == "classification":
        recipe = make_recipe(bert, tmp_path, epochs=2, method=method)
    else:
        pytest.importorskip("trl")
        recipe = make_instruction_recipe(llama, tmp_path / "data", epochs=2, method=method)
    run = train(recipe, tmp_path / "run")
    events = [json.loads(line) for line in (run / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    routing = [event for event in events if event["event"] == "routing"]
    assert len(routing) == 2
    for event in routing:
        assert all(sum(router["load"]) == pytest.approx(1) for router in event["routers"].values())
    steps = [event for event in events if event["event"] == "train"]
    assert all(event["forward_loss"] > 0 for event in steps)
    write_report(run)
    report = (run / "report.html").read_text(encoding="utf-8")
    assert "Load of the busiest expert" in report
    assert "Entropy of the routers" in report
    assert all(name.replace(".", ".<wbr>") in report for name in routing[-1]["routers"])
    assert evaluate(run)["metrics"] == read_metrics(run)["metrics"]
    text = tmp_path / "text.txt"
    text.write_text("good bad\n\nfine\n", encoding="utf-8")
    capsys.readouterr()
    inspect_command(directory=str(run), text=[text], json=True)
    shown = json.loads(capsys.readouterr().out)
    assert shown["lines"] == 2
    assert [router["name"] for router in shown["routers"]] == list(routing[-1]["routers"])
    inspect_command(directory=str(run), text=[text])
    assert "MILORA_MOE adapter on 2 lines of text" in capsys.readouterr().out
    other = tmp_path / "other.txt"
    other.write_text("great\n", encoding="utf-8")
    inspect_command(directory=str(run), text=[other, text], json=True)
    both = json.loads(capsys.readouterr().out)["texts"]
    assert [entry["lines"] for entry in both] == [1, 2]
    assert both[1]["routers"] == shown["routers"] != both[0]["routers"]
    inspect_command(directory=str(run), text=[other, text])
    assert "MILORA_MOE adapter on 1 line of text in" in " ".join(capsys.readouterr().out.split())
    text.write_text("\n", encoding="utf-8")
    with pytest.raises(InputError, match="the file holds no text"):
        inspect_routing(run, text)
    with pytest.raises(AdapterError, match="'MILORA_MOE' is a mixture of LoRA experts"):
        format_of(read_header(run / "adapter"))


@pytest.mark.parametrize("kind", ["moe-lora", "milora-moe"])
def test_a_run_on_several_tasks_shows_who_was_chosen_for_each(kind, llama, tmp_path, monkeypatch):
    recipe = make_mixture(llama, tmp_path / "data", method={"name": kind, "r": 2}, epochs=1)
    run = train(recipe, tmp_path / "run")
    events = [json.loads(line) for line in (run / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    (event,) = [event for event in events if event["event"] == "routing"]
    assert list(event["parts"]) == ["copy", "instruction"]
    data = load_task(recipe.task)
    task_model = TaskModel.for_saved_run(recipe, None, run)
    examples = task_model.encode(data, "validation")
    for part, routers in event["parts"].items():
        rows = [row for row, name in zip(examples.rows, examples.parts, strict=True) if name == part]
        with record_routing(task_model.model.eval()) as alone:
            for row in rows:
                task_model.model(**{key: torch.tensor([row[key]]) for key in ("input_ids", "labels")})
        for name, entry in alone.items():
            assert routers[name]["load"] == pytest.approx(entry["load"], abs=1e-5)
            assert routers[name]["entropy"] == pytest.approx(entry["entropy"], rel=1e-4)
            assert (
                routers[name]["items"]
                == entry["items"]
                == sum(label != -100 for row in rows for label in row["labels"][1:])
            )
    write_report(run)
    report = (run / "report.html").read_text(encoding="utf-8")
    assert "By task, on the first validation rows of each part" in report
    shown = routing_by_part(read_run(run))
    assert [row.name for row in shown] == ["copy", "instruction"]
    assert shown[0].distance == pytest.approx(shown[1].distance)
    assert report.count(f'<td class="number">{share(shown[0].distance)}</td>') >= 2
    monkeypatch.setattr("kasatune.training.train.routing_by_part", lambda *_: {})
    without = train(recipe, tmp_path / "without")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (without / "adapter" / name).read_bytes() == (run / "adapter" / name).read_bytes()


def test_the_difference_between_tasks_is_a_total_variation():
    def routers(*loads):
        return {f"layer{i}": {"load": load, "entropy": math.log(len(load))} for i, load in enumerate(loads)}

    parts = {
        "a": routers([1.0, 0.0], [0.5, 0.5]),
        "b": routers([0.0, 1.0], [0.5, 0.5]),
        "c": routers([0, 1.0], [1.0, 0.0]),
    }
    record = SimpleNamespace(events=lambda kind: [{"routers": parts["a"], "parts": parts}])
    rows = routing_by_part(record)
    assert [row.distance for row in rows] == pytest.approx([(1 + 0.25) / 2, (0.5 + 0.25) / 2, (0.5 + 0.5) / 2])
    assert [row.busiest for row in rows] == [0.75, 0.75, 1.0]
    assert rows[0].entropy == pytest.approx(1)


def test_more_experts_per_token_than_there_are(bert, tmp_path):
    recipe = make_recipe(bert, tmp_path, method={"name": "milora-moe", "r": 2, "options": {"top_k": 3}})
    with pytest.raises(InputError, match=r"top_k: 3 received, .* bert\.encoder\.layer\.0, which has 2 adapted"):
        train(recipe, tmp_path / "run")
    for kind in ("moe-lora", "malora"):
        recipe = make_recipe(bert, tmp_path, method={"name": kind, "r": 2, "options": {"top_k": 9}})
        with pytest.raises(InputError, match=r"options\.top_k: 9 received, more than the 8 experts of a layer"):
            train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_packing_is_refused_for_a_router_of_prompts_and_works_for_one_of_tokens(llama, tmp_path):
    recipes = {
        kind: make_text_recipe(llama, tmp_path / kind, method={"name": kind, "r": 2}, packing=True, max_steps=1)
        for kind in ("milora-moe", "moe-lora")
    }
    with pytest.raises(InputError, match=r"training\.packing: true received; packed rows: a router of prompts decides"):
        train(recipes["milora-moe"], tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    assert read_metrics(train(recipes["moe-lora"], tmp_path / "run"))["metrics"]["loss"] > 0


def tokenizer(folder):
    """A tokenizer of single letters, which TRL's trainer asks for."""
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[CLS]", "[SEP]", "[UNK]", *"abc"]), encoding="utf-8")
    return BertTokenizer(str(vocabulary), eos_token="[SEP]")


@pytest.mark.parametrize("kind", ["moe-lora", "milora-moe"])
def test_in_trl_trainer(kind, tmp_path):
    """The balance loss is in the loss of TRL's own trainer, once for each micro-batch."""
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    data = batch(8)
    lengths = data["attention_mask"].sum(-1).tolist()
    names = ("input_ids", "labels")
    rows = [{name: data[name][row, : lengths[row]].tolist() for name in names} for row in range(8)]
    losses = {}
    for weight in (0.0, 7.0):
        arguments = trl.SFTConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            max_steps=1,
            learning_rate=0.0,
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            bf16=False,
        )
        trainer = trl.SFTTrainer(
            model=adapted(kind, balance_weight=weight),
            args=arguments,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=tokenizer(tmp_path),
        )
        trainer.train()
        losses[weight] = trainer.state.log_history[0]["loss"]
    assert losses[7.0] - losses[0.0] == pytest.approx(7.0, rel=2e-3)
