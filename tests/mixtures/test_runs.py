"""Runs of the mixtures from recipes: routing in history.jsonl and the report, the balance loss, refusals."""

from __future__ import annotations

import json

import pytest
from transformers import BertTokenizer

from kasatune.adapter_tools.inspect_routing import inspect_routing
from kasatune.adapters.adapter_files import read_header
from kasatune.adapters.recognize_format import format_of
from kasatune.cli.commands.inspect import command as inspect_command
from kasatune.errors import AdapterError, InputError
from kasatune.evaluation.evaluate import evaluate
from kasatune.reports.run_page import write_report
from kasatune.runs.metrics import read_metrics
from kasatune.training.train import train
from tests.mixtures.models import adapted, batch
from tests.toys import make_recipe
from tests.training.test_instruction_runs import recipe as make_instruction_recipe


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
    inspect_command(directory=str(run), text=text, json=True)
    shown = json.loads(capsys.readouterr().out)
    assert shown["lines"] == 2
    assert [router["name"] for router in shown["routers"]] == list(routing[-1]["routers"])
    inspect_command(directory=str(run), text=text)
    assert "MILORA_MOE adapter on 2 lines of text" in capsys.readouterr().out
    text.write_text("\n", encoding="utf-8")
    with pytest.raises(InputError, match="the file holds no text"):
        inspect_routing(run, text)
    with pytest.raises(AdapterError, match="'MILORA_MOE' is a mixture of LoRA experts"):
        format_of(read_header(run / "adapter"))


def test_more_experts_per_token_than_there_are(bert, tmp_path):
    recipe = make_recipe(bert, tmp_path, method={"name": "milora-moe", "r": 2, "options": {"top_k": 3}})
    with pytest.raises(InputError, match=r"top_k: 3 received, .* bert\.encoder\.layer\.0, which has 2 adapted"):
        train(recipe, tmp_path / "run")


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
