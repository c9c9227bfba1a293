"""`kasatune verify` detects every number of a comparison that does not follow from its runs."""

from __future__ import annotations

import json
import shutil

import pytest

from kasatune.adapter_tools.verify import verify
from kasatune.errors import InputError
from kasatune.experiments.compare.comparison_file import write_comparison
from kasatune.metrics import bootstrap_interval
from tests.experiments.compare.toys import make_toy_spec, run


@pytest.fixture(scope="module")
def compared(bert, tmp_path_factory):
    folder = tmp_path_factory.mktemp("verified")
    found, _ = run(make_toy_spec(bert, folder), folder / "out")
    write_comparison(found, folder / "out")
    return folder / "out"


@pytest.fixture
def copy(compared, tmp_path):
    return shutil.copytree(compared, tmp_path / "out")


def change(path, *keys):
    """Add a little to the number at the end of `keys`."""
    content = json.loads(path.read_text(encoding="utf-8"))
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] += 1e-6
    path.write_text(json.dumps(content), encoding="utf-8")


def failed(out):
    return [check.name for check in verify(out) if check.passed is False]


def entry_of(out):
    return json.loads((out / "comparison.json").read_text(encoding="utf-8"))["tasks"][0]["results"][0]


def test_an_unchanged_comparison_passes(compared):
    checks = verify(compared)
    assert [check.passed for check in checks] == [True] * 5
    assert checks[0].figure == "10 are present and readable", "two seeds of three methods, two trials of two of them"


def test_every_reported_run_records_its_origin(compared):
    for one in entry_of(compared)["runs"]:
        assert one["made_from"]["machine"]["processor"] and one["made_from"]["model"]["fingerprint"]
        assert one["made_from"]["data_sha256"] and one["made_from"]["versions"]["torch"]


@pytest.mark.parametrize(
    ("place", "line"),
    [
        (("mean",), "means and intervals"),
        (("sd",), "means and intervals"),
        (("interval", 0), "means and intervals"),
        (("runs", 0, "score"), "scores"),
        (("runs", 1, "metrics", "loss"), "scores"),
        (("search", "trials", 0, "score"), "chosen settings"),
        (("search", "trials", 0, "runs", 0, "score"), "scores"),
        (("iqm",), "means and intervals"),
        (("search", "chosen", "learning_rate"), "chosen settings"),
    ],
)
def test_a_changed_number_is_detected(place, line, copy):
    change(copy / "comparison.json", "tasks", 0, "results", 0, *place)
    assert line in failed(copy)


def test_a_score_that_does_not_follow_from_the_predictions_is_detected(copy):
    folder = copy / "runs" / entry_of(copy)["runs"][0]["run"]
    answers = json.loads((folder / "predictions.json").read_text(encoding="utf-8"))
    answers["predictions"][0] = 1 - answers["predictions"][0]
    (folder / "predictions.json").write_text(json.dumps(answers), encoding="utf-8")
    assert failed(copy) == ["scores", "means and intervals"], "the interval follows from the rows too"


def test_changed_settings_of_a_run_are_detected(copy):
    change(copy / "runs" / entry_of(copy)["runs"][0]["run"] / "run.json", "identity", "training", "learning_rate")
    assert failed(copy) == ["names"]


def test_a_lost_run_is_detected(copy):
    shutil.rmtree(copy / "runs" / entry_of(copy)["runs"][0]["run"])
    assert failed(copy) == ["runs"]


def test_a_damaged_report_is_refused(copy):
    (copy / "comparison.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="--report-only"):
        verify(copy)


def test_a_comparison_of_schema_version_2_has_bootstrap_intervals_over_the_seeds(copy):
    path = copy / "comparison.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["schema_version"] = 2
    for entry in content["tasks"][0]["results"]:
        values = [run["score"] for run in entry["runs"]]
        entry["interval"] = list(bootstrap_interval(values)[1:])
        for trial in entry["search"]["trials"] if entry["search"] else ():
            del trial["runs"]
    path.write_text(json.dumps(content), encoding="utf-8")
    assert failed(copy) == []
