"""Names of the files and folders of a run directory, for whoever writes or reads one; imports nothing."""

from __future__ import annotations

RECIPE = "recipe.yaml"
METRICS = "metrics.json"
HISTORY = "history.jsonl"
PREDICTIONS = "predictions.json"
SPECTRUM = "spectrum.json"
REPORT = "report.html"  # also of a comparison
CARD = "README.md"
ADAPTER = "adapter"  # a stock PEFT adapter
NATIVE = "kasa"  # the native KaSA adapter
CHECKPOINT = "checkpoint"  # all trained weights of a method without an adapter
WEIGHT_FOLDERS = (ADAPTER, NATIVE, CHECKPOINT)
REFERENCE = "reference.json"  # log-probabilities of the answers under the model before training, of preference
JUDGE = "judge"  # written by `kasatune evaluate --judge`
SCORES = "scores"  # scores of further splits, written by `kasatune reproduce`
BASELINE = "head"  # run of the fitted head, written by `kasatune demo`
TENSORBOARD = "tensorboard"  # only if training.report_to names it
START = "start.json"  # in WORK: the losses before the first step, for a resumed run
WORK = "unfinished"  # checkpoints of a run in progress; removed at its end
WRITTEN = (
    RECIPE,
    METRICS,
    HISTORY,
    PREDICTIONS,
    SPECTRUM,
    REFERENCE,
    WORK,
    *WEIGHT_FOLDERS,
    JUDGE,
    REPORT,
    TENSORBOARD,
)
"""What a run writes, and what a new run in the same directory therefore removes first."""
