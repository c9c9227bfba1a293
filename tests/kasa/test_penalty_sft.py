"""The penalty under TRL's SFTTrainer, with no line changed but the configuration."""

import pytest
import torch
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from kasatune import KasaConfig
from tests.kasa.penalty_probe import BETA, GAMMA, assert_penalized_once, llama, no_warning, rows
from tests.kasa.penalty_trainers import Watch, arguments

datasets = pytest.importorskip("datasets", reason="needs the extra kasatune[sft]")
trl = pytest.importorskip("trl", reason="needs the extra kasatune[sft]")


def tokenizer():
    vocabulary = {f"w{i}": i for i in range(60)} | {"<unk>": 60, "<pad>": 61, "<s>": 62, "</s>": 63}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def text(count=24):
    return datasets.Dataset.from_dict(
        {"text": [" ".join(f"w{int(i) % 60}" for i in row["input_ids"]) for row in rows(count)]}
    )


def fit(folder, peft_config, accumulation):
    watch = Watch()
    torch.manual_seed(0)
    settings = arguments(folder, accumulation=accumulation, steps=2, max_length=16, gradient_checkpointing=False)
    trainer = trl.SFTTrainer(
        model=llama(),
        args=trl.SFTConfig(**settings, bf16=False),
        train_dataset=text(),
        processing_class=tokenizer(),
        peft_config=peft_config,
        callbacks=[watch],
    )
    trainer.train()
    return watch.probe.steps, [row["loss"] for row in trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize("accumulation", [1, 4])
def test_sft_trainer(tmp_path, accumulation):
    config = {"r": 2, "lora_alpha": 4, "beta": BETA, "gamma": GAMMA, "target_modules": ["q_proj", "v_proj"]}
    with no_warning():
        seen, losses = fit(tmp_path, KasaConfig(**config), accumulation)
    task, task_losses = fit(tmp_path, KasaConfig(**config, penalty="none"), accumulation)
    assert_penalized_once(seen, task)
    assert losses == task_losses


def test_the_same_lines_train_lora(tmp_path):
    seen, _ = fit(tmp_path, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]), 1)
    assert len(seen) == 2
