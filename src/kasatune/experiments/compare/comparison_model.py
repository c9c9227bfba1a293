"""The typed form of comparison.json: one pydantic model for each of its objects.

Keys are added, never renamed or removed. Files of earlier versions are read with the defaults of the keys they lack.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from kasatune.experiments.compare.comparison_method_model import Difference, Interval, MethodEntry, Model, Number

SCHEMA_VERSION = 3  # 1: files without the key; 2: bootstrap intervals, "no difference shown"


class BaselineCheck(Model):
    """Whether the best trained method of a task beats the baselines.

    Attributes:
        best: the best trained method.
        against_head: [mean, low, high] of its difference to the fitted head.
        against_majority: [mean, low, high] of its difference to the majority class.
        counts: whether both intervals lie above 0; None if unknown.
        against_base: of a task that generates text, [mean, low, high] of its difference to the untouched base.
    """

    best: str | None
    against_head: Interval | None
    against_majority: Interval | None
    counts: bool | None
    against_base: Interval | None = None


class BaseEntry(Model):
    """The untouched base on a task that generates text.

    Attributes:
        run: ID of its run.
        metrics: its scores.
    """

    run: str
    metrics: dict[str, Number | None]


class TextSample(Model):
    """A prompt with its references and the texts that the methods wrote for it.

    Attributes:
        prompt: the prompt.
        references: the right answers.
        base: text of the untouched base; None if it is not finished.
        texts: text of each method with the first seed.
    """

    prompt: str
    references: list[str]
    base: str | None
    texts: dict[str, str]


class TaskEntry(Model):
    """One task: its data, the settings that all methods share, and the result of each method."""

    name: str
    task: str
    model: str
    primary: str
    rows: dict[str, int]
    labels: int | None
    data_source: str
    data_sha256: str
    notes: list[str]
    training: dict[str, Any]
    max_length: int | None
    shared_method_settings: dict[str, Any]
    majority: Number | None
    results: list[MethodEntry]
    counts: BaselineCheck
    base: BaseEntry | None = None
    texts: list[TextSample] = Field(default_factory=list)


class OverallEntry(Model):
    """One method over all tasks, against the reference.

    Attributes:
        ties: tasks on which it is equivalent, and neither better nor worse; without a verdict in schema version 2.
        undecided: tasks without any of these verdicts; None in schema version 2.
    """

    method: str
    wins: int
    ties: int
    losses: int
    not_tested: int
    tasks: int
    average_rank: Number | None
    undecided: int | None = None


class PrimaryResult(Model):
    """The primary endpoint and its result.

    Attributes:
        task, metric, method, reference, margin: the endpoint.
        difference: its difference; None before there is a run of both methods.
    """

    task: str
    metric: str
    method: str
    reference: str
    margin: Number | None
    difference: Difference | None = None


class Registration(Model):
    """The file in which configuration, endpoint, margins and analysis were written down before the first run.

    Attributes:
        file: its name.
        sha256: of its bytes.
        commit: the commit that last changed it, if it was committed without later changes; None otherwise.
        committed_at: date of that commit.
        first_run_at: when the first reported run finished; None without any.
        before_first_run: whether the commit is older than that; None if unknown.
    """

    file: str
    sha256: str
    commit: str | None
    committed_at: str | None
    first_run_at: str | None
    before_first_run: bool | None


class Comparison(Model):
    """The content of comparison.json.

    Attributes:
        schema_version: version of this model.
        answer: the conclusion in words.
        format: always 1; kept for readers of earlier files.
        command: the command line that repeats the comparison.
        protocol: "clean" or "paper".
        protocol_in_words: description of the protocol.
        reference: the variant that all others are compared with.
        seeds: seeds of the reported runs.
        search: kind, trials and bounds of the search, and whether it applies.
        progress: number of runs planned, there, done_now and failed.
        complete: whether all planned runs are finished.
        methods: all variants, as written on the command line.
        tasks: one entry per task.
        overall: one entry per method, over the tasks.
        machine: processor, number of processors and threads per run.
        versions: software versions.
        margins: margins of equivalence by score.
        primary: the primary endpoint; None if all differences are exploratory.
        registration: the registered plan; None without one.
        analysis: how differences are tested, in words; "" in files of schema version 2.
    """

    schema_version: int = 1
    answer: str = ""
    format: int = 1
    command: str
    protocol: str
    protocol_in_words: str
    reference: str
    seeds: list[int]
    search: dict[str, Any]
    progress: dict[str, int]
    complete: bool
    methods: list[str]
    tasks: list[TaskEntry]
    overall: list[OverallEntry]
    machine: dict[str, Any]
    versions: dict[str, Any]
    margins: dict[str, Number] = Field(default_factory=dict)
    primary: PrimaryResult | None = None
    registration: Registration | None = None
    analysis: str = ""
