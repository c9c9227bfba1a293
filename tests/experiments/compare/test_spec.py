"""Validation of a comparison, the hyperparameter search, and run IDs."""

from __future__ import annotations

from pathlib import Path

import pytest

from kasatune.data.tasks import load_task
from kasatune.errors import InputError, RecipeError
from kasatune.evaluation.unrelated_text import UnrelatedText
from kasatune.experiments.compare.hyperparameter_search import (
    OptunaSearch,
    at_the_edge,
    best_trial,
    beyond_the_edge,
    fixed_trials,
    search_space,
)
from kasatune.experiments.compare.run_id import plan_run
from kasatune.experiments.compare.search_holdout import search_data
from kasatune.experiments.compare.spec import SEARCH_SEED, Search, make_spec
from kasatune.experiments.compare.variants import parse_seeds, parse_variants
from tests.toys import make_recipe


@pytest.fixture
def recipe(bert, tmp_path):
    return make_recipe(bert, tmp_path)


def spec_of(recipe, methods="kasa,lora", seeds=(0, 1), **options):
    return make_spec([(Path("toy.yaml"), recipe)], parse_variants(methods), seeds, **options)


def test_a_variant_changes_only_the_method(recipe):
    spec = spec_of(recipe, "kasa:convention=authors:r=3,kasa:truncate=false,lora")
    authors, whole, lora = (spec.recipe(spec.tasks[0], one, 7, {"learning_rate": 0.5}) for one in spec.variants[:3])
    assert (authors.method.convention, authors.method.r) == ("authors", 3)
    assert whole.method.options["truncate"] is False and whole.method.r == 2
    assert lora.method.name == "lora"
    assert authors.training == whole.training == lora.training
    assert (lora.training.seed, lora.training.learning_rate, lora.training.select) == (7, 0.5, "last")
    assert authors.task == recipe.task and authors.model == recipe.model


def test_the_fitted_head_always_takes_part(recipe):
    assert [one.text for one in spec_of(recipe, "lora").variants] == ["lora", "head"]
    assert [one.text for one in spec_of(recipe, "head,lora").variants] == ["head", "lora"]


def test_the_protocol_of_the_paper_selects_the_best_epoch(recipe):
    spec = spec_of(recipe, protocol="paper")
    assert spec.recipe(spec.tasks[0], spec.variants[0], 0, {}).training.select == "best"


@pytest.mark.parametrize(
    ("methods", "words"),
    [
        ("kasa,lroa", "'lroa' is not a method; did you mean lora?"),
        ("", "name at least one method"),
        ("kasa,kasa", "given twice"),
        ("kasa:r", "method:key=value"),
        ("kasa:r=2:r=3", "r is given twice"),
        ("kasa:name=lora", "method:key=value"),
    ],
)
def test_invalid_methods_are_refused(methods, words):
    with pytest.raises(InputError, match="--methods"):
        parse_variants(methods)
    with pytest.raises(InputError) as caught:
        parse_variants(methods)
    assert words in str(caught.value)


@pytest.mark.parametrize("seeds", ["0,0", "a", "-1", "", "4294967296"])
def test_invalid_seeds_are_refused(seeds):
    with pytest.raises(InputError, match="--seeds"):
        parse_seeds(seeds)


def test_all_faults_of_all_variants_are_reported_at_once(recipe):
    with pytest.raises(RecipeError) as caught:
        spec_of(recipe, "kasa:convention=autors,lora:beta=1,bitfit:speed=3")
    text = str(caught.value)
    assert "convention" in text and "did you mean" in text
    assert "lora does not read method.beta" in text
    assert "speed" in text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"reference": "dora"}, "--reference"),
        ({"protocol": "fair"}, "--protocol"),
        ({"search": Search("annealing")}, "--search"),
        ({"search": Search(trials=0)}, "--trials"),
        ({"search": Search(low=1e-2, high=1e-3)}, "--learning-rates"),
        ({"seeds": (SEARCH_SEED,)}, "--seeds"),
    ],
)
def test_options_out_of_range_are_refused(options, words, recipe):
    with pytest.raises(InputError, match=words):
        spec_of(recipe, **options)


def test_two_recipes_of_one_task_are_refused(recipe):
    with pytest.raises(InputError, match="more than once"):
        make_spec([(Path("a/toy.yaml"), recipe), (Path("b/toy.yaml"), recipe)], parse_variants("lora"), [0])


def test_every_method_tries_the_same_learning_rates(recipe):
    search = Search("grid", 4)
    kasa, lora, head = (parse_variants(name)[0] for name in ("kasa", "lora", "head"))
    spaces = [search_space(one, recipe, search) for one in (kasa, lora)]
    assert list(spaces[0]) == ["learning_rate", "beta", "gamma"] and list(spaces[1]) == ["learning_rate"]
    assert search_space(head, recipe, search) == {}
    for kind in ("grid", "random"):
        trials = [fixed_trials(space, Search(kind, 4)) for space in spaces]
        rates = [[one["learning_rate"] for one in tried] for tried in trials]
        assert rates[0] == rates[1] and len(set(rates[0])) == 4
    assert [one["learning_rate"] for one in fixed_trials(spaces[1], search)] == [0.001, 0.004642, 0.02154, 0.1]
    assert len({one["beta"] for one in fixed_trials(spaces[0], search)}) == 4


def test_a_penalty_that_is_fixed_or_zero_is_not_searched(recipe):
    search = Search()
    (without,) = parse_variants("kasa:beta=0")
    assert list(search_space(without, recipe, search)) == ["learning_rate", "gamma"]
    off = recipe.model_copy(update={"method": recipe.method.model_copy(update={"gamma": 0.0})})
    assert list(search_space(without, off, search)) == ["learning_rate"]


def test_optuna_is_seeded_and_stays_within_its_bounds(recipe):
    pytest.importorskip("optuna", reason="needs kasatune[search]")
    space = {"learning_rate": (1e-4, 1e-2), "beta": (1e-5, 1e-3)}

    def run():
        search, tried = OptunaSearch(space, Search("optuna", 6)), []
        for number in range(6):
            tried.append(search.ask())
            search.tell(None if number == 1 else tried[-1]["learning_rate"])
        return tried

    first = run()
    assert first == run()
    assert all(1e-4 <= one["learning_rate"] <= 1e-2 and 1e-5 <= one["beta"] <= 1e-3 for one in first)


def test_the_best_trial_wins_by_score_then_loss_then_order():
    scores = [None, {"acc": 0.5, "loss": 1.0}, {"acc": 0.6, "loss": 2.0}, {"acc": 0.6, "loss": 1.5}]
    assert best_trial(scores, "acc", lower_is_better=False) == 3
    assert best_trial(scores, "acc", lower_is_better=True) == 1
    assert (
        best_trial([{"acc": float("nan"), "loss": 0.1}, {"acc": 0.1, "loss": 9.0}], "acc", lower_is_better=False) == 1
    )
    assert best_trial([None, None], "acc", lower_is_better=False) is None
    assert best_trial([{"acc": 0.5, "loss": 1.0}] * 2, "acc", lower_is_better=False) == 0


def test_a_learning_rate_at_the_edge_is_noticed():
    tried = [{"learning_rate": rate} for rate in (0.1, 0.2, 0.4)]
    space = {"learning_rate": (0.1, 0.4)}
    assert at_the_edge({"learning_rate": 0.4}, space, tried)
    assert not at_the_edge({"learning_rate": 0.2}, space, tried)


def test_a_search_sees_training_rows_alone(recipe):
    data = load_task(recipe.task)
    found = search_data(data)
    trained, kept = found.splits["train"], found.splits["validation"]
    assert len(kept) == round(0.2 * 24) and len(trained) + len(kept) == 24
    rows = sorted(zip([*trained.first, *kept.first], [*trained.labels, *kept.labels], strict=True))
    assert rows == sorted(zip(data.splits["train"].first, data.splits["train"].labels, strict=True))
    share = sum(data.splits["train"].labels) / 24
    assert abs(sum(kept.labels) / len(kept) - share) <= 1 / len(kept)
    assert search_data(data).sha256 == found.sha256 != data.sha256


def test_equal_runs_have_equal_ids_and_others_do_not(recipe, bert, tmp_path):
    spec = spec_of(recipe, "kasa,lora")
    kasa, lora = spec.variants[:2]

    def job(variant=kasa, of=spec, seed=0, search=False, rows="a", **settings):
        return plan_run(of.recipe(of.tasks[0], variant, seed, settings), rows, search=search).id

    other = make_recipe(bert, tmp_path / "elsewhere", method={"beta": 0.5})
    moved = spec_of(other, "kasa,lora")
    assert job() == job()
    assert len({job(), job(lora), job(seed=1), job(search=True), job(rows="b"), job(learning_rate=0.1)}) == 6
    assert job(lora) == job(lora, of=moved), "another folder, and a setting that LoRA does not read"
    assert job() != job(of=moved)


def test_a_search_moves_on_beyond_an_edge_by_the_ratio_of_the_rates():
    tried = [{"learning_rate": rate, "beta": 1.0} for rate in (0.001, 0.01, 0.1)]
    assert beyond_the_edge(tried[2], tried) == {"learning_rate": 1.0, "beta": 1.0}
    assert beyond_the_edge(tried[0], tried) == {"learning_rate": 0.0001, "beta": 1.0}
    assert beyond_the_edge(tried[1], tried) is None
    assert beyond_the_edge(tried[0], tried[:1]) is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"search": Search(seeds=0)}, "--search-seeds"),
        ({"search": Search(extensions=-1)}, "--search-extensions"),
        ({"margins": ["bleu=0.1"]}, "'bleu' is not a score of these tasks"),
        ({"primary": "toy:accuracy:kasa:head"}, "--primary"),
        ({"unrelated": UnrelatedText(tokens=1)}, "--unrelated-tokens"),
        ({"seeds": (SEARCH_SEED - 2,)}, "reserved for the search"),
    ],
)
def test_invalid_options_of_the_analysis_are_refused(recipe, options, words):
    with pytest.raises(InputError, match=words):
        spec_of(recipe, **options)


def test_a_margin_of_the_user_replaces_the_default(recipe):
    spec = spec_of(recipe, margins=["accuracy=0.005"])
    assert spec.margin("accuracy") == 0.005 and spec.margin("forgetting") == 0.02 and spec.margin("mse") is None
