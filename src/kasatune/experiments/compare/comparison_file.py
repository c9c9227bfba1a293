"""comparison.json: its typed model with a schema version, and the only place that reads and writes it.

Keys are added, never renamed or removed. Files of earlier versions are read with the defaults of the keys they lack.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_serializer, field_validator

from kasatune.errors import InputError
from kasatune.io.atomic import finite, write_json
from kasatune.recipes.messages import message
from kasatune.reports.comparison.conclusion import conclusion
from kasatune.reports.comparison.write_reports import write_reports

COMPARISON = "comparison.json"
SCHEMA_VERSION = 3  # 1: files without the key; 2: bootstrap intervals, "no difference shown"

Number = int | float
Interval = list[Number]
"""[low, high], or [estimate, low, high] where the attribute says so."""
Verdict = Literal["better", "worse", "equivalent", "not inferior", "undecided", "not tested", "no difference shown"]
"""`no difference shown` is what files of schema version 2 say for undecided."""


class _Model(BaseModel):
    """Keys that a later version adds are kept."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())


class Retention(_Model):
    """How much of the base model's behaviour on unrelated text is left after training; medians over the seeds.

    Attributes:
        kind: "masked_lm_loss", "causal_lm_loss" or "feature_drift".
        before: value of the base model.
        after: value of the trained model.
        text: origin of the text; None in files of earlier versions, which used 48 sentences.
        tokens: number of tokens of the text.
    """

    kind: str
    before: Number | None
    after: Number | None
    text: str | None = None
    tokens: int | None = None


class Costs(_Model):
    """Costs of a run, medians over the seeds; times in seconds, sizes in bytes."""

    trained_parameters: int | None = None
    head_parameters: int | None = None
    file_bytes: dict[str, int] = Field(default_factory=dict)
    peak_memory_bytes: Number | None = None
    seconds_attach: Number | None = None
    seconds_per_step: Number | None = None
    seconds_train: Number | None = None
    seconds_total: Number | None = None
    steps: int | None = None
    retention: Retention | None = None


class TrialRun(_Model):
    """One seed of a search trial."""

    seed: int
    run: str
    score: Number | None
    loss: Number | None
    error: str | None


class Trial(_Model):
    """One trial of the hyperparameter search; `score` and `loss` are None if one of its runs failed.

    Attributes:
        settings: the settings that were tried.
        score: mean main score over the seeds of the trial.
        loss: mean loss over them.
        error: why a run failed.
        run: ID of the run of the first seed.
        runs: the run of each seed; empty in files of earlier versions, whose trials had one seed.
    """

    settings: dict[str, Number]
    score: Number | None
    loss: Number | None
    error: str | None
    run: str
    runs: list[TrialRun] = Field(default_factory=list)


class SearchResult(_Model):
    """The search of one method on one task.

    Attributes:
        space: [low, high] of each searched setting.
        trials: all trials, in order.
        chosen: settings of the best trial; None if unknown or every trial failed.
        at_the_edge: whether the chosen learning rate is the smallest or largest tried.
    """

    space: dict[str, Interval]
    trials: list[Trial]
    chosen: dict[str, Number] | None
    at_the_edge: bool | None


class ReportedRun(_Model):
    """One reported run.

    Attributes:
        seed: its seed.
        run: its ID, the name of its folder in OUT/runs.
        score: the task's main score; None if it failed.
        metrics: all scores.
        epoch: the epoch that is scored.
        error: why it failed.
        made_from: hashes, machine and versions, as in metrics.json.
    """

    seed: int
    run: str
    score: Number | None
    metrics: dict[str, Number | None] | None = None
    epoch: Number | None = None
    error: str | None = None
    made_from: dict[str, Any] = Field(default_factory=dict)


class Difference(_Model):
    """A method's score minus the reference's, paired by seed and row.

    Attributes:
        seeds: number of paired seeds.
        mean: mean difference.
        interval: [low, high], 95 %, with seeds and rows random; in files of schema version 2 over resampled ones.
        p: two-sided, of the hypothesis of no difference.
        p_holm: `p` after Holm's correction over the exploratory differences; equal to `p` for the primary one.
        verdict: the strongest conclusion.
        verdicts: all conclusions, such as ["better", "equivalent"].
        margin: the largest difference that does not matter; None if the score has none.
        family: "primary" or "exploratory".
        interval_90: [low, high], 90 %: inside the margin exactly if p_equivalent is below 0.05.
        p_equivalent: p of the two one-sided tests of |difference| >= margin.
        p_equivalent_holm: the same, corrected like `p_holm`.
        p_not_inferior: one-sided p of the hypothesis that the method is worse by the margin or more.
        p_not_inferior_holm: the same, corrected like `p_holm`.
        standard_error: of `mean`.
        df: degrees of freedom of `standard_error`.
        rows: number of rows that count as random; 0 if rows are held fixed.
        variances: variance components of the difference: "seeds", "rows", "residual".
    """

    seeds: int
    mean: Number | None
    interval: Interval | None
    p: Number | None
    p_holm: Number | None
    verdict: Verdict
    verdicts: list[Verdict] = Field(default_factory=list)
    margin: Number | None = None
    family: Literal["primary", "exploratory"] | None = None
    interval_90: Interval | None = None
    p_equivalent: Number | None = None
    p_equivalent_holm: Number | None = None
    p_not_inferior: Number | None = None
    p_not_inferior_holm: Number | None = None
    standard_error: Number | None = None
    df: Number | None = None
    rows: int | None = None
    variances: dict[str, Number] | None = None


class Endpoint(_Model):
    """A score of a method besides the main one.

    Attributes:
        n: number of runs with the score.
        values: the score of each seed, in the order of the seeds that have it.
        mean, sd, iqm, interval: see `MethodEntry`.
        difference: comparison with the reference.
    """

    n: int
    values: list[Number]
    mean: Number | None
    sd: Number | None
    iqm: Number | None
    interval: Interval | None
    difference: Difference | None = None


class CollapsedSeeds(_Model):
    """Reported runs that learnt nothing: they failed, or do not beat the constant answer or the untouched base.

    Attributes:
        count: number of such runs.
        seeds: number of finished runs.
        interval: [low, high] of their share, 95 %, Wilson.
    """

    count: int
    seeds: int
    interval: Interval


class MethodEntry(_Model):
    """One method on one task.

    Attributes:
        method: the variant as written on the command line.
        name: the method's name.
        title: title of the variant in tables.
        paper: the publication of the method.
        implemented_by: the library that implements it.
        reconstructed: whether parts of the method are reconstructed, because no code was published.
        fitted: whether it is a baseline fitted in closed form.
        search: the hyperparameter search; None without one.
        runs: the reported runs.
        n: number of runs with a score.
        mean: mean of the main score.
        sd: standard deviation over seeds.
        interval: [low, high] of the mean, 95 %, with seeds and rows random; of schema version 2 a bootstrap over seeds.
        iqm: interquartile mean over seeds.
        collapsed: the runs that learnt nothing.
        best_epoch_mean: mean over seeds of the best epoch's score, for comparison with published logs.
        costs: costs of a run; {} in the file if no run succeeded.
        curve: [epoch, mean, smallest, largest] of the main score over the seeds.
        difference: comparison with the reference; None for the reference itself.
        endpoints: further scores by name, "forgetting" among them.
        forgetting_curve: [epoch, mean] of forgetting over the seeds.
    """

    method: str
    name: str
    title: str
    paper: str
    implemented_by: str
    reconstructed: bool
    fitted: bool
    search: SearchResult | None
    runs: list[ReportedRun]
    n: int
    mean: Number | None
    sd: Number | None
    interval: Interval | None
    best_epoch_mean: Number | None
    costs: Costs | None
    curve: list[list[Number]]
    difference: Difference | None = None
    iqm: Number | None = None
    collapsed: CollapsedSeeds | None = None
    endpoints: dict[str, Endpoint] = Field(default_factory=dict)
    forgetting_curve: list[list[Number]] = Field(default_factory=list)

    @field_validator("costs", mode="before")
    @classmethod
    def _no_costs(cls, value: Any) -> Any:
        return value or None

    @field_serializer("costs")
    def _costs_or_empty(self, costs: Costs | None) -> dict[str, Any]:
        return {} if costs is None else costs.model_dump(mode="json")


class BaselineCheck(_Model):
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


class BaseEntry(_Model):
    """The untouched base on a task that generates text.

    Attributes:
        run: ID of its run.
        metrics: its scores.
    """

    run: str
    metrics: dict[str, Number | None]


class TextSample(_Model):
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


class TaskEntry(_Model):
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


class OverallEntry(_Model):
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


class PrimaryResult(_Model):
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


class Registration(_Model):
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


class Comparison(_Model):
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


def checked(content: Mapping[str, Any]) -> dict[str, Any]:
    """Validate the content of a new comparison.json; NaN and infinity become None.

    Raises:
        pydantic.ValidationError: it does not follow the model.
    """
    return Comparison.model_validate({**finite(content), "schema_version": SCHEMA_VERSION}).model_dump(mode="json")


def write_comparison(content: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Write comparison.json and the reports made from it into `out`.

    Returns:
        `content` with the conclusion under "answer".

    Raises:
        OutputError: `out` cannot be written.
    """
    complete = {**content, "answer": conclusion(content)}
    write_json(out / COMPARISON, complete, indent=1)
    write_reports(complete, out)
    return complete


def read_comparison(out: Path) -> dict[str, Any]:
    """Read comparison.json; keys that an earlier version did not write have their defaults.

    Raises:
        InputError: it is missing or damaged, or a later version of kasatune wrote it.
    """
    path = out / COMPARISON
    try:
        content = Comparison.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as fault:
        first = fault.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(f"{path} is damaged at {place} ({message(first)}); {_REPAIR}") from fault
    except (OSError, ValueError) as fault:
        raise InputError(f"{path} cannot be read ({fault}); {_REPAIR}") from fault
    if content.schema_version > SCHEMA_VERSION:
        raise InputError(
            f"{path} has schema version {content.schema_version}, this version reads up to {SCHEMA_VERSION}; "
            "update kasatune"
        )
    return content.model_dump(mode="json")


_REPAIR = "repeat the command that made it with --report-only"
