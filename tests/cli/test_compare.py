"""`kasatune compare` through the real entry of the command line."""

from __future__ import annotations

import csv
import io
import json
import re

import pytest

from tests.toys import make_bert, make_recipe


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A recipe file for a toy task."""
    folder = tmp_path_factory.mktemp("toy")
    from kasatune.recipes.schema import to_yaml

    recipe = make_recipe(make_bert(folder / "bert"), folder, epochs=1)
    path = folder / "toy.yaml"
    path.write_text(to_yaml(recipe), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def compared(toy, tmp_path_factory):
    """The directory of a finished comparison, made by the command, and what that printed."""
    from kasatune.experiments.compare.process_cache import process_cache

    process_cache.cache_clear()
    return tmp_path_factory.mktemp("compared") / "out"


OPTIONS = (
    *("--methods", "kasa,kasa:convention=authors,lora", "--seeds", "0,1", "--trials", "2"),
    *("--search-seeds", "1", "--search-extensions", "0", "--unrelated-tokens", "320"),
)


def test_a_comparison_writes_every_form_of_its_report_and_shows_the_answer(kasatune, toy, compared):
    planned = kasatune("compare", toy, *OPTIONS, "--out", compared, "--plan")
    assert planned.status == 0 and "14 runs, 0 finished" in planned.out and not compared.exists()
    assert "at 80 % power these seeds show a difference of 11.55 standard deviations" in planned.out
    done = kasatune("compare", toy, *OPTIONS, "--out", compared)
    assert done.status == 0, done.err
    found = json.loads((compared / "comparison.json").read_text(encoding="utf-8"))
    answer = found["answer"]
    page = re.sub(r"<[^>]+>", " ", (compared / "report.html").read_text(encoding="utf-8"))
    assert answer in done.out and answer in " ".join(page.split())
    assert "14/14" in done.err
    lines = csv.DictReader(io.StringIO((compared / "comparison.csv").read_text(encoding="utf-8")))
    rows = [row for row in lines if row["metric"] == "accuracy"]
    assert [row["method"] for row in rows] == ["kasa", "kasa:convention=authors", "lora", "head", "majority"]
    assert float(rows[0]["mean"]) == pytest.approx(found["tasks"][0]["results"][0]["mean"])
    for text in ((compared / "comparison.md").read_text(encoding="utf-8"), done.out):
        assert all(name in text for name in ("KaSA (convention=authors)", "fitted head", "majority class"))
    assert (compared / "comparison.tex").read_text(encoding="utf-8").count(r"\\") == 6
    again = kasatune("compare", toy, *OPTIONS, "--out", compared, "--plan", "--json")
    assert json.loads(again.out)["finished"] == 14
    power = kasatune("compare", toy, *OPTIONS, "--out", compared, "--plan", "--pilot", compared)
    assert "Smallest difference that these seeds show at 80 % power" in power.out and "exceed the margin" in power.out
    printed = kasatune("compare", toy, *OPTIONS, "--out", compared, "--report-only", "--json")
    assert json.loads(printed.out)["answer"] == answer


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--methods", "kasa,lroa"), "did you mean lora"),
        (("--methods", "kasa[r=2]"), "is not a method"),
        (("--seeds", "0,0"), "given twice"),
        (("--workers", "0"), "--workers"),
        (("--workers", "many"), "or ray"),
        (("--threads", "0"), "--threads"),
        (("--trials", "0"), "--trials"),
        (("--learning-rates", "1e-3"), "two numbers"),
        (("--learning-rates", "0,1"), "above 0"),
        (("--search", "luck"), "grid, random or optuna"),
        (("--protocol", "fair"), "clean, paper"),
        (("--reference", "dora"), "--reference"),
        (("--tasks", "nowhere.yaml"), "no such file"),
        (("--report-only",), "holds no comparison"),
        (("--margin", "accuracy"), "METRIC=VALUE"),
        (("--margin", "bleu=0.1"), "not a score of these tasks"),
        (("--primary", "toy:accuracy:kasa"), "two different methods"),
        (("--primary", "toy:bleu:kasa:lora"), "not a score of toy"),
        (("--search-seeds", "0"), "--search-seeds"),
        (("--search-extensions", "99"), "--search-extensions"),
        (("--unrelated", "nowhere.txt"), "nowhere.txt"),
        (("--unrelated-tokens", "0"), "--unrelated-tokens"),
        (("--registered", "nowhere.yaml"), "nowhere.yaml"),
        (("--register", "plan.yaml"), "--primary"),
        (("--pilot", "nowhere"), "with --plan only"),
        (("--plan", "--pilot", "nowhere"), "nowhere"),
        (("training.epochs=0",), "epochs"),
        (("other:training.epochs=1",), "is not among the recipes toy"),
        (("toy:training.epochs=0",), "epochs"),
    ],
)
def test_faults_of_the_input_are_told_and_nothing_is_written(options, words, kasatune, toy, place):
    done = kasatune("compare", toy, *options, "--out", place / "out")
    assert done.status == 2 and words in done.err and "Traceback" not in done.err
    assert not (place / "out").exists()


def test_an_override_may_be_for_one_recipe_alone():
    from kasatune.cli.commands.compare import _overrides

    own = _overrides(["training.epochs=2", "sst2:task.data=a:b", "task.text=x:y"], ["sst2", "demo"])
    assert own == {
        "sst2": ["training.epochs=2", "task.data=a:b", "task.text=x:y"],
        "demo": ["training.epochs=2", "task.text=x:y"],
    }
