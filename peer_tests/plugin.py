"""A pytest plug-in for PEFT's test suite: cases for this project's tuners, and a record of every outcome.

In the parameter lists of PEFT's tests, every LoRA case is replaced by its twins (twins.py); tests without such a case
are deselected. The outcomes go to the folder named by KASATUNE_PEER_RECORDS.
"""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
import json
import os
import sys
import types
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from kasatune.kasa.model import KasaModel
from kasatune.methods.bottleneck import BottleneckModel
from kasatune.mixtures.model import MixtureModel
from peer_tests import RECORDS, SUITE
from peer_tests.outcomes import describe
from peer_tests.tiny_models import write_models
from peer_tests.twins import TWINS, Case, twins_of

_TWIN = "peer_twin"
_SPREAD = 0.05
_CONFIGS = {twin.config_class for twin in TWINS}


def pytest_configure(config: pytest.Config) -> None:
    """Prepare the process before PEFT's test modules are imported; the working folder gets the models."""
    write_models(Path.cwd())
    _stand_in_for("diffusers", "StableDiffusionPipeline")
    for config_class in _CONFIGS:
        _accept_init_weights(config_class)
    _perturb_new_adapters(KasaModel, lambda layer, name: layer.kasa_B[name])
    _perturb_new_adapters(BottleneckModel, lambda layer, name: layer.bottleneck_adapter[name].up.weight)
    _perturb_new_adapters(MixtureModel, lambda layer, name: layer.mixture_B[name])
    utilities = importlib.import_module(f"{SUITE}.testing_utils")
    utilities.set_init_weights_false = _for_twins(utilities.set_init_weights_false)


def _stand_in_for(module: str, *names: str) -> None:
    """Let `from module import name` succeed where an optional package is missing; calling the name skips the test."""
    if importlib.util.find_spec(module) is not None:
        return
    stand_in = types.ModuleType(module)
    stand_in.__spec__ = importlib.machinery.ModuleSpec(module, None)
    for name in names:
        setattr(stand_in, name, type(name, (), {"__init__": lambda self, *a, **k: pytest.skip(f"needs {module}")}))
    sys.modules[module] = stand_in


def _accept_init_weights(config_class: Any) -> None:
    """Let a configuration take PEFT's `init_weights`: False asks for an adapter that is not at its initial values."""
    initialize = config_class.__init__

    @functools.wraps(initialize)
    def accepting(self: Any, *args: Any, init_weights: bool = True, **kwargs: Any) -> None:
        initialize(self, *args, **kwargs)
        self.peer_init_weights = init_weights

    config_class.__init__ = accepting


def _perturb_new_adapters(model_class: Any, factor: Any) -> None:
    """Draw the factor that starts at zero at random where the configuration says `init_weights=False`."""
    create = model_class._create_and_replace

    @functools.wraps(create)
    def creating(
        self: Any,
        peft_config: Any,
        adapter_name: str,
        target: Any,
        target_name: str,
        parent: Any,
        *args: Any,
        **kw: Any,
    ) -> None:
        create(self, peft_config, adapter_name, target, target_name, parent, *args, **kw)
        parameter = factor(getattr(parent, target_name), adapter_name)
        if not getattr(peft_config, "peer_init_weights", True) and not parameter.is_meta:
            with torch.no_grad():
                parameter.normal_(0, _SPREAD)

    model_class._create_and_replace = creating


def _for_twins(original: Any) -> Any:
    def set_init_weights_false(config_class: Any, settings: dict[str, Any]) -> dict[str, Any]:
        if config_class in _CONFIGS:
            return {**settings, "init_weights": False}
        return original(config_class, settings)

    return set_init_weights_false


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Replace LoRA cases by their twins before pytest expands the parameter lists."""
    marks = metafunc.definition.own_markers
    for index, mark in enumerate(marks):
        if mark.name != "parametrize" or len(mark.args) < 2:
            continue
        names = [name.strip() for name in mark.args[0].split(",")] if isinstance(mark.args[0], str) else mark.args[0]
        cases = twins_of(names, mark.args[1])
        if cases:
            marks[index] = pytest.mark.parametrize(names, [_entry(case) for case in cases]).mark


def _entry(case: Case) -> Any:
    return pytest.param(*case.values, marks=pytest.mark.peer_twin(case.twin), id=_identifier(case))


def _identifier(case: Case) -> str:
    return "-".join([case.twin, *(str(value) for value in case.values if isinstance(value, str))]).replace(" ", "_")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests with a case of this project, and note their number before -k selects among them."""
    ours = [item for item in items if _twin_of(item)]
    config.hook.pytest_deselected(items=[item for item in items if not _twin_of(item)])
    items[:] = ours
    if RECORDS in os.environ:
        for name, count in Counter(item.path.stem for item in ours).items():
            (Path(os.environ[RECORDS]) / f"{name}.count").write_text(str(count), encoding="utf-8")


def _twin_of(item: pytest.Item) -> str:
    return next((mark.args[0] for mark in item.iter_markers(_TWIN) if mark.args), "")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Record how a test ended, once."""
    result: Any = yield
    report = result.get_result()
    if report.when == "call" or (report.when == "setup" and not report.passed):
        ended = "xfailed" if hasattr(report, "wasxfail") else report.outcome
        _record(item, ended, call.excinfo.value if call.excinfo is not None else None)


def _record(item: pytest.Item, ended: str, error: BaseException | None) -> None:
    folder = os.environ.get(RECORDS)
    if folder is None:
        return
    line = {"test": item.nodeid.partition("::")[2], "twin": _twin_of(item), "pytest": ended, **describe(error)}
    with (Path(folder) / f"{item.path.stem}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
