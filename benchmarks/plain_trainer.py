"""Baseline script: PEFT's LoRA or KaSA with a plain Trainer, from a file of rows to a saved adapter.

python -m benchmarks.plain_trainer SETTINGS.json

The settings are those of `benchmarks.whole_run`, which runs this script as a separate process. Standard output is
one JSON object: seconds of training, evaluations included.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import peft
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)


class WithPenalty(Trainer):
    """What PEFT's documentation tells the user of its KaSA to do."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        """The task's loss and the penalty."""
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        loss = loss + model.base_model._get_kasa_loss()
        return (loss, outputs) if return_outputs else loss


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    rows = json.loads(Path(settings["rows"]).read_text(encoding="utf-8"))
    method, training = settings["method"], settings["training"]
    set_seed(training["seed"])
    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    base = AutoModelForSequenceClassification.from_pretrained(settings["model"], num_labels=rows["labels"])
    kasa = {"kasa_config": peft.KasaConfig(beta=method["beta"], gamma=method["gamma"])} if settings["kasa"] else {}
    config = LoraConfig(
        task_type="SEQ_CLS",
        r=method["r"],
        lora_alpha=method["alpha"],
        target_modules=method["target_modules"],
        **kasa,
    )
    model = get_peft_model(base, config)

    def encoded(split: str) -> Dataset:
        texts = [name for name in ("first", "second") if rows[split].get(name)]
        return Dataset.from_dict({name: rows[split][name] for name in [*texts, "labels"]}).map(
            lambda batch: tokenizer(*(batch[name] for name in texts), truncation=True, max_length=settings["length"]),
            batched=True,
            remove_columns=texts,
        )

    out = Path(settings["out"])
    arguments = TrainingArguments(
        output_dir=str(out / "checkpoints"),
        num_train_epochs=training["epochs"],
        per_device_train_batch_size=training["batch_size"],
        per_device_eval_batch_size=training["eval_batch_size"],
        learning_rate=training["learning_rate"],
        warmup_steps=training["warmup_ratio"],
        eval_strategy="epoch",
        save_strategy="epoch",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = (WithPenalty if settings["kasa"] else Trainer)(
        model=model,
        args=arguments,
        train_dataset=encoded("train"),
        eval_dataset=encoded("validation"),
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda outputs: {
            "accuracy": float((outputs.predictions.argmax(-1) == outputs.label_ids).mean())
        },
    )
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    model.save_pretrained(str(out))
    print(json.dumps({"training": seconds}))


if __name__ == "__main__":
    main()
