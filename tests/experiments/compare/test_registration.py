"""A plan is written once, committed, and must be what is run; and what `--plan` says of power."""

from __future__ import annotations

import os
import statistics
import subprocess

import pytest

from kasatune.errors import InputError
from kasatune.experiments.compare.compare import plan_methods
from kasatune.experiments.compare.comparison_file import write_comparison
from kasatune.experiments.compare.detectable_difference import smallest_differences
from kasatune.experiments.compare.process_cache import ProcessCache
from kasatune.experiments.compare.registration import read_registration, write_plan
from tests.experiments.compare.toys import make_toy_spec, run
from tests.reports.sample_comparisons import comparison

PRIMARY = "toy:accuracy:bitfit:lora:0.1"


def planned(spec):
    return plan_methods(spec, ProcessCache(), lambda text: None)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    folder = tmp_path / "repository"
    folder.mkdir()
    for key in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{key}_NAME", "somebody")
        monkeypatch.setenv(f"GIT_{key}_EMAIL", "somebody@example.org")
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    return folder


def commit(folder, date="2026-01-01T00:00:00+00:00"):
    subprocess.run(["git", "-C", str(folder), "add", "-A"], check=True)
    environment = {**os.environ, "GIT_COMMITTER_DATE": date}
    subprocess.run(["git", "-C", str(folder), "commit", "-q", "-m", "plan"], check=True, env=environment)


def test_a_plan_is_committed_and_then_run(bert, tmp_path, repository):
    spec = make_toy_spec(bert, tmp_path, "bitfit,lora", (0,), trials=1, primary=PRIMARY, training={"max_steps": 1})
    methods, plan = planned(spec), repository / "plan.yaml"
    write_plan(spec, methods, plan)
    assert read_registration(spec, methods, plan)["commit"] is None, "not committed yet"
    commit(repository)
    registration = read_registration(spec, methods, plan)
    assert len(registration["commit"]) == 40 and registration["file"] == "plan.yaml"
    found, _ = run(spec, tmp_path / "out", registered=plan)
    assert found["registration"]["before_first_run"] is True
    assert found["primary"]["difference"]["family"] == "primary" and found["primary"]["margin"] == 0.1
    assert "were registered in plan.yaml" in write_comparison(found, tmp_path / "out")["answer"]
    plan.write_text(plan.read_text() + "# changed\n")
    assert read_registration(spec, methods, plan)["commit"] is None, "changed after the commit"
    commit(repository, "2099-01-01T00:00:00+00:00")
    again, lines = run(spec, tmp_path / "out", registered=plan)
    assert lines == [] and again["registration"]["before_first_run"] is False, "committed after the runs"


def test_another_comparison_than_planned_is_refused(bert, tmp_path):
    spec = make_toy_spec(bert, tmp_path, "bitfit,lora", trials=1, primary=PRIMARY)
    plan = tmp_path / "plan.yaml"
    write_plan(spec, planned(spec), plan)
    assert read_registration(spec, planned(spec), plan)["commit"] is None, "no repository"
    for options, place in (
        ({"seeds": (0, 2)}, "seeds"),
        ({"primary": "toy:accuracy:bitfit:lora:0.2"}, "primary.margin"),
        ({"training": {"learning_rate": 0.02}}, "tasks.toy.recipe.training.learning_rate"),
    ):
        other = make_toy_spec(bert, tmp_path, **{"methods": "bitfit,lora", "trials": 1, "primary": PRIMARY, **options})
        with pytest.raises(InputError, match="differs from") as caught:
            read_registration(other, planned(other), plan)
        assert place in str(caught.value)


def test_a_plan_is_never_overwritten_and_needs_an_endpoint(bert, tmp_path):
    spec = make_toy_spec(bert, tmp_path, "bitfit,lora", trials=1, primary=PRIMARY)
    (tmp_path / "plan.yaml").write_text("mine")
    with pytest.raises(InputError, match="exists"):
        write_plan(spec, planned(spec), tmp_path / "plan.yaml")
    with pytest.raises(InputError, match="is not a plan"):
        read_registration(spec, planned(spec), tmp_path / "plan.yaml")
    bare = make_toy_spec(bert, tmp_path, "bitfit,lora", trials=1)
    with pytest.raises(InputError, match="needs a primary endpoint"):
        write_plan(bare, planned(bare), tmp_path / "other.yaml")


def pilot_of(variances: dict[str, float] | None):
    """The content of a comparison of kasa and lora on the toy task, with these variances of the difference."""
    content = comparison(1)
    task = content["tasks"][0]
    task.update(name="toy", task="classification")
    for entry in task["results"]:
        if entry["difference"]:
            entry["difference"].update(variances=variances, standard_error=0.01, df=4.0, rows=872)
    return content


def test_the_smallest_difference_in_standard_deviations(bert, tmp_path):
    (line,) = smallest_differences(make_toy_spec(bert, tmp_path, seeds=(0, 1, 2, 3, 4)), [], None)
    assert line["unit"] == "sd" and line["smallest"] == pytest.approx(1.68, abs=0.01)
    assert smallest_differences(make_toy_spec(bert, tmp_path, seeds=(0,)), [], None)[0]["smallest"] is None


def test_the_smallest_difference_from_the_variances_of_a_pilot(bert, tmp_path):
    spec = make_toy_spec(bert, tmp_path, seeds=range(10))
    write_comparison(pilot_of({"seeds": 1e-4, "rows": 0.0, "residual": 0.0}), tmp_path)
    lines = {line["metric"]: line for line in smallest_differences(spec, planned(spec), tmp_path)}
    assert lines["accuracy"]["smallest"] == pytest.approx(0.996 * 0.01, abs=1e-4), "one standard deviation, ten seeds"
    assert lines["accuracy"]["margin"] == 0.01 and lines["accuracy"]["exceeds_margin"] is False
    write_comparison(pilot_of({"seeds": 1e-4, "rows": 0.01, "residual": 0.1}), tmp_path)
    (wider,) = (one for one in smallest_differences(spec, planned(spec), tmp_path) if one["metric"] == "accuracy")
    assert wider["smallest"] > 2 * lines["accuracy"]["smallest"] and wider["exceeds_margin"] is True


def test_a_pilot_of_an_earlier_version_gives_the_variance_over_the_seeds(bert, tmp_path):
    content = pilot_of(None)
    write_comparison(content, tmp_path)
    spec = make_toy_spec(bert, tmp_path, seeds=range(5))
    lines = {line["metric"]: line for line in smallest_differences(spec, planned(spec), tmp_path)}
    kasa, lora = ([run["score"] for run in content["tasks"][0]["results"][place]["runs"]] for place in (0, 3))
    spread = statistics.stdev(a - b for a, b in zip(kasa, lora, strict=True))
    assert lines["accuracy"]["smallest"] == pytest.approx(1.682 * spread, rel=1e-3)
    assert lines["forgetting"]["smallest"] is None
