"""One measured training of a language model: kasatune, or PEFT's LoRA with transformers' Trainer or TRL's SFTTrainer.

python -m benchmarks.language_model_run SETTINGS.json

`benchmarks.language_model` writes the settings and runs this in a process of its own. Standard output ends with one
JSON object: seconds and losses of the steps, resident bytes before the first step and at most, seconds of attaching.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from kasatune import KasaConfig
from kasatune.io.environment import peak_memory, reset_peak_memory
from kasatune.io.progress import NullProgress
from kasatune.recipes.schema import Recipe
from kasatune.training.train import train


class EnoughError(Exception):
    """Raised after the last measured step: saving and scoring the run are not measured."""


class Steps(NullProgress, TrainerCallback):
    """Times, losses and memory of the steps, as a display of kasatune or as a callback of a Trainer."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.times: list[float] = []
        self.losses: list[float] = []
        self.resident = self.peak = 0

    def start(self, total_steps: int = 0, title: str = "") -> None:
        """Training begins."""
        reset_peak_memory()
        self.resident = resident()
        self.times.append(time.perf_counter())

    def step(self, step: int, epoch: float, loss: float | None, learning_rate: float | None) -> None:
        """A step is done; of kasatune."""
        self._add(loss)
        if len(self.losses) == self.number:
            raise EnoughError

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Training begins; of a Trainer."""
        self.start()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """A step is done; of a Trainer."""
        if logs is not None and "loss" in logs:
            self._add(logs["loss"])
            control.should_training_stop = len(self.losses) == self.number

    def _add(self, loss: float | None) -> None:
        self.times.append(time.perf_counter())
        self.losses.append(float(loss or 0.0))
        self.peak = peak_memory() or 0

    def result(self) -> dict[str, Any]:
        """What was measured."""
        seconds = [after - before for before, after in zip(self.times, self.times[1:], strict=False)]
        return {"seconds": seconds, "losses": self.losses, "resident": self.resident, "peak": self.peak}


def resident() -> int:
    """Bytes of this process in memory; 0 where the system does not report it."""
    status = Path("/proc/self/status")
    found = re.search(r"^VmRSS:\s+(\d+) kB$", status.read_text(), re.MULTILINE) if status.is_file() else None
    return int(found[1]) * 1024 if found else 0


def kasatune_run(settings: dict[str, Any]) -> dict[str, Any]:
    """`kasatune.train` until the last measured step."""
    steps = Steps(settings["steps"])
    with tempfile.TemporaryDirectory() as folder:
        try:
            train(Recipe.model_validate(settings["recipe"]), Path(folder) / "run", display=steps)
        except EnoughError:
            return steps.result()
    raise SystemExit(f"the run ended after {len(steps.losses)} steps")


def stock_run(settings: dict[str, Any]) -> dict[str, Any]:
    """PEFT's LoRA with a plain Trainer, or with TRL's SFTTrainer."""
    method, training = settings["recipe"]["method"], settings["recipe"]["training"]
    rows = json.loads(Path(settings["rows"]).read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    base = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32)
    set_seed(training["seed"])
    lora = LoraConfig(
        task_type="CAUSAL_LM", r=method["r"], lora_alpha=method["alpha"], target_modules=method["target_modules"]
    )
    model = get_peft_model(base, lora)
    steps = Steps(settings["steps"])
    with torch.no_grad():
        model(input_ids=torch.tensor([rows[0]["input_ids"]]))  # every weight is read once before memory is measured
    with tempfile.TemporaryDirectory() as folder:
        common: dict[str, Any] = {
            "output_dir": folder,
            "max_steps": settings["steps"],
            "per_device_train_batch_size": training["batch_size"],
            "learning_rate": training["learning_rate"],
            "lr_scheduler_type": "constant",
            "weight_decay": 0.0,
            "max_grad_norm": 0.0,
            "logging_steps": 1,
            "logging_nan_inf_filter": False,
            "seed": training["seed"],
            "data_seed": training["seed"],
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "bf16": False,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            "gradient_checkpointing": False,
            "train_sampling_strategy": "sequential" if settings["in_order"] else "random",
        }
        if settings["engine"] == "trl":
            from datasets import Dataset
            from trl.trainer.sft_config import SFTConfig
            from trl.trainer.sft_trainer import SFTTrainer

            data = Dataset.from_dict({key: [row[key] for row in rows] for key in ("input_ids", "labels")})
            trainer: Trainer = SFTTrainer(
                model=model,
                args=SFTConfig(**common, max_length=settings["recipe"]["task"]["max_length"]),
                train_dataset=data,
                processing_class=tokenizer,
                callbacks=[steps],
            )
        else:
            trainer = Trainer(
                model=model,
                args=TrainingArguments(**common),
                train_dataset=rows,
                data_collator=DataCollatorForSeq2Seq(tokenizer, padding="longest"),
                callbacks=[steps],
            )
        trainer.train()
    return steps.result()


def attach(settings: dict[str, Any]) -> dict[str, Any]:
    """Attach KaSA to the model, with every decomposition computed anew."""
    os.environ["KASATUNE_CACHE"] = "off"
    method = settings["recipe"]["method"]
    seconds: list[float] = []
    layers = 0
    for _ in range(settings["steps"]):
        base = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32)
        config = KasaConfig(
            task_type="CAUSAL_LM", r=method["r"], lora_alpha=method["alpha"], target_modules=method["target_modules"]
        )
        start = time.perf_counter()
        model = get_peft_model(base, config)
        seconds.append(time.perf_counter() - start)
        layers = sum(name.endswith("kasa_A") for name, _ in model.named_modules())
    return {"seconds": seconds, "layers": layers}


ENGINES = {"kasatune": kasatune_run, "trainer": stock_run, "trl": stock_run, "attach": attach}


def run(settings: dict[str, Any]) -> dict[str, Any]:
    """The measurement that the settings describe."""
    return ENGINES[settings["engine"]](settings)


if __name__ == "__main__":
    print("\n" + json.dumps(run(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))
