"""A method of another package: one module and one row, found by an entry point, used by every part of kasatune."""

from __future__ import annotations

import importlib
import json
import sys
from textwrap import dedent

import pytest
from scripts.write_methods_page import page

from kasatune import methods
from kasatune.cli.commands.listing import Kind, command
from kasatune.errors import InputError
from kasatune.evaluation.evaluate import evaluate
from kasatune.evaluation.predict import predict
from kasatune.methods import table
from kasatune.methods.info import MethodInfo
from kasatune.recipes.schema import recipe_json_schema
from kasatune.reports.card import write_card
from kasatune.reports.run_page import write_report
from kasatune.training.plan import make_plan
from kasatune.training.train import train
from tests.experiments.compare.toys import make_toy_spec
from tests.experiments.compare.toys import run as run_comparison
from tests.toys import make_recipe

ROW = """
    from kasatune.methods.info import MethodInfo, Option

    INFO = MethodInfo(
        name="toy-norms",
        aliases=("toy-shift",),
        title="Toy norms",
        paper="none",
        trains="the shifts of the last LayerNorms",
        parameters="`last` d",
        bases="models with LayerNorms",
        implemented_by="toy_package",
        module="toy_package.norms",
        uses=(),
        options=(Option("last", "integer", 2, "number of LayerNorms, counted from the top", low=1),),
        disable="the base's own parameters are trained",
        trains_base_weights=True,
    )
"""
METHOD = '''
    from kasatune.methods.shared.checkpoint_folder import CheckpointMethod
    from toy_package.row import INFO


    class Norms(CheckpointMethod):
        """LN(x) + b, with only the shift b of the last n LayerNorms trained.

        Not from a paper.
        """

        info = INFO

        def attach(self, model, settings, kind, new_modules):
            model.requires_grad_(False)
            shifts = [value for name, value in model.named_parameters() if name.endswith("LayerNorm.bias")]
            trained = shifts[-settings.options["last"] :]
            for name in new_modules:
                trained += model.get_submodule(name).parameters()
            for parameter in trained:
                parameter.requires_grad_(True)
            return model


    METHOD = Norms()
'''


def install(folder, entry_point="toy_package.row:INFO"):
    """What pip leaves behind after installing a package with one entry point."""
    (folder / "toy_package").mkdir(parents=True)
    (folder / "toy_package" / "__init__.py").touch()
    (folder / "toy_package" / "row.py").write_text(dedent(ROW), encoding="utf-8")
    (folder / "toy_package" / "norms.py").write_text(dedent(METHOD), encoding="utf-8")
    info = folder / "toy_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-package\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[kasatune.methods]\ntoy-norms = {entry_point}\n", encoding="utf-8")


@pytest.fixture
def empty_table(monkeypatch):
    """The table of methods as it was, after the test; and no module of the toy package."""
    monkeypatch.setattr(table, "_ALIASES", dict(table._ALIASES))
    for name in list(table.METHODS):
        monkeypatch.setitem(table.METHODS, name, table.METHODS[name])
    yield
    table.METHODS.pop("toy-norms", None)
    for name in [name for name in sys.modules if name.startswith("toy_package")]:
        del sys.modules[name]


@pytest.fixture
def toy(empty_table, tmp_path, monkeypatch) -> MethodInfo:
    install(tmp_path / "site-packages")
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    importlib.invalidate_caches()
    table.register_installed_methods()
    return table.METHODS["toy-norms"]


def test_an_installed_method_is_planned_trained_scored_and_reported(toy, bert, tmp_path, capsys):
    recipe = make_recipe(bert, tmp_path, method={"name": "toy-shift", "options": {"last": 3}}, epochs=1)
    assert (recipe.method.name, recipe.method.options) == ("toy-norms", {"last": 3})
    assert make_plan(recipe).trainable_parameters == 3 * 32
    out = train(recipe, tmp_path / "run")
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["trainable_parameters"] == 3 * 32
    assert evaluate(out)["metrics"] == metrics["metrics"]
    assert predict(out, ["good fine"])[0]["prediction"]["label"] in ("label0", "label1")
    write_report(out)
    write_card(out)
    assert "Toy norms" in (out / "report.html").read_text(encoding="utf-8")


def test_an_installed_method_takes_part_in_comparisons(toy, bert, tmp_path):
    spec = make_toy_spec(bert, tmp_path, methods="toy-norms:last=1", seeds=(0,), trials=1)
    comparison, _ = run_comparison(spec, tmp_path / "out")
    (task,) = comparison["tasks"]
    assert [entry["name"] for entry in task["results"]] == ["toy-norms", "head"]
    assert task["results"][0]["costs"]["trained_parameters"] == 32


def test_an_installed_method_is_listed_documented_and_in_the_schema(toy, capsys):
    command(Kind.METHODS, json=True)
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["toy-norms"]["by"] == "toy_package"
    text = page([toy])
    assert "| [`toy-norms`](#toy-norms) | Toy norms |" in text
    assert "LN(x) + b, with only the shift b" in text
    assert (
        "`options.last`: number of LayerNorms, counted from the top; a whole number of at least 1, 2 by default" in text
    )
    schema = recipe_json_schema()["$defs"]["MethodSection"]
    assert {"toy-norms", "toy-shift"} <= set(schema["properties"]["name"]["enum"])


def test_registering_the_same_row_twice_changes_nothing(toy):
    methods.register_method(toy)
    assert methods.load("toy-shift").info is toy


@pytest.mark.parametrize("clash", [{"name": "lora"}, {"name": "linear-probe"}, {"aliases": ("lora",)}])
def test_a_name_that_is_taken_is_refused(toy, clash):
    with pytest.raises(InputError, match=r"belongs to kasatune\.methods"):
        methods.register_method(MethodInfo(**{**vars(toy), "name": "other", "aliases": (), **clash}))


@pytest.mark.parametrize(
    ("entry_point", "reason"),
    [("toy_package.missing:INFO", "cannot be imported"), ("toy_package:__name__", "is a str, not a MethodInfo")],
)
def test_a_broken_entry_point_is_refused_by_name(empty_table, tmp_path, monkeypatch, entry_point, reason):
    install(tmp_path / "site-packages", entry_point)
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    importlib.invalidate_caches()
    with pytest.raises(InputError, match=f"toy-norms = {entry_point}.*{reason}"):
        table.register_installed_methods()
