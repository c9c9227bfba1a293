from __future__ import annotations

from pathlib import Path

from transformers import AutoModelForSequenceClassification, PreTrainedModel, set_seed

from kasatune.recipes.schema import MethodSection


def classifier(folder: Path, labels: int = 2, **options: object) -> PreTrainedModel:
    set_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=labels, **options).eval()


def settings(name: str, **values: object) -> MethodSection:
    return MethodSection(name=name, **{"r": 2, "alpha": 4, **values})
