"""transformers' Trainer and TRL's SFTTrainer on tiny models, and what their optimizers see."""

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from tests.kasa.penalty_probe import Probe, rows, scatter


class Watch(TrainerCallback):
    """Puts a probe on the optimizer that the trainer made."""

    def __init__(self, draw=True):
        self.draw = draw
        self.probe = None
        self.logs = []

    def on_train_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
        if self.draw:
            scatter(model)
        self.probe = Probe(model, getattr(optimizer, "optimizer", optimizer))

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(logs)


def labelled(make_rows=rows, count=24):
    """Rows with a class each."""
    return [{**row, "labels": row["input_ids"][0] % 2} for row in make_rows(count)]


def arguments(folder, accumulation=1, steps=3, **settings):
    """Eight examples a step, in so many pieces."""
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8 // accumulation,
        "gradient_accumulation_steps": accumulation,
        "max_steps": steps,
        "optim": "sgd",
        "learning_rate": 0.0,
        "lr_scheduler_type": "constant",
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": [],
        "logging_steps": 1,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        **settings,
    }


def fit(model, folder, resume=None, draw=True, trainer_settings=None, **settings):
    """Train with transformers' Trainer; returns what was seen, and the trainer."""
    watch = Watch(draw)
    torch.manual_seed(0)
    trainer = Trainer(
        model,
        TrainingArguments(**arguments(folder, **settings)),
        train_dataset=labelled(),
        eval_dataset=labelled(count=8),
        callbacks=[watch],
        **(trainer_settings or {}),
    )
    trainer.train(resume_from_checkpoint=resume)
    return watch.probe.steps, trainer
