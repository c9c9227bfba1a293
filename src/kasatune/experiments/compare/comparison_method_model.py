"""The entry of one method in comparison.json: its scores, differences, search, runs and costs, as pydantic models.

Keys are added, never renamed or removed. Files of earlier versions are read with the defaults of the keys they lack.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_serializer, field_validator

Number = int | float
Interval = list[Number]
"""[low, high], or [estimate, low, high] where the attribute says so."""
Verdict = Literal["better", "worse", "equivalent", "not inferior", "undecided", "not tested", "no difference shown"]
"""`no difference shown` is what files of schema version 2 say for undecided."""


class Model(BaseModel):
    """Keys that a later version adds are kept."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())


class Retention(Model):
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


class Costs(Model):
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


class TrialRun(Model):
    """One seed of a search trial."""

    seed: int
    run: str
    score: Number | None
    loss: Number | None
    error: str | None


class Trial(Model):
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


class SearchResult(Model):
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


class ReportedRun(Model):
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


class Difference(Model):
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


class Endpoint(Model):
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


class CollapsedSeeds(Model):
    """Reported runs that learnt nothing: they failed, or do not beat the constant answer or the untouched base.

    Attributes:
        count: number of such runs.
        seeds: number of finished runs.
        interval: [low, high] of their share, 95 %, Wilson.
    """

    count: int
    seeds: int
    interval: Interval


class MethodEntry(Model):
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
