from __future__ import annotations

import subprocess
import sys
import warnings

import pytest

from kasatune.io.library_noise import quiet
from kasatune.metrics import regression_scores
from kasatune.runs.provenance import reproducibility_statement
from kasatune.training.train import train
from tests.toys import Recorder, make_recipe


def test_warnings_of_kasatune_are_passed_on_once_and_no_others():
    messages = []
    with quiet(messages.append):
        for _ in range(2):
            regression_scores(["pearson"], [1.0, 1.0], [1.0, 2.0])
            warnings.warn("of another library", stacklevel=1)
    assert len(messages) == 1
    assert "pearson is undefined" in messages[0]


def test_without_a_listener_they_are_shown_as_python_warnings():
    with pytest.warns(UserWarning, match="pearson is undefined") as found, quiet():
        regression_scores(["pearson"], [1.0, 1.0], [1.0, 2.0])
        warnings.warn("of another library", stacklevel=1)
    assert len(found) == 1


def test_the_package_datasets_is_not_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)  # as in an installation without kasatune[train]
    messages = []
    with quiet(messages.append):
        regression_scores(["pearson"], [1.0, 1.0], [1.0, 2.0])
    assert len(messages) == 1


@pytest.mark.parametrize(
    ("warning", "operation"),
    [
        ("foo_cuda does not have a deterministic implementation, but you set ...", "foo_cuda"),
        ("Flash Attention defaults to a non-deterministic algorithm. To explicitly enable ...", "Flash Attention"),
        (
            "Memory Efficient attention defaults to a non-deterministic algorithm. To explicitly ...",
            "Memory Efficient attention",
        ),
        (
            "Deterministic behavior was enabled with either `torch.use_deterministic_algorithms(True)` ..., but "
            "this operation is not deterministic because it uses CuBLAS and you have CUDA >= 10.2.",
            "CuBLAS",
        ),
    ],
)
def test_nondeterministic_operations_are_reported_once_rephrased_and_recorded(monkeypatch, warning, operation):
    monkeypatch.setattr("kasatune.io.library_noise._warned_of", {})
    assert "that it warned of (none)" in reproducibility_statement()
    messages = []
    with quiet(messages.append):
        for _ in range(2):
            warnings.warn(warning, stacklevel=1)
    assert messages == [
        f"{operation} is not deterministic on this device: a repeated run may differ in its last digits"
    ]
    assert f"that it warned of ({operation})" in reproducibility_statement()


def test_the_reason_why_no_gpu_is_used_is_reported_without_the_place_in_torch():
    messages = []
    with quiet(messages.append):
        warnings.warn(
            "CUDA initialization: The NVIDIA driver on your system is too old (found version 11040). Please update it. "
            "(Triggered internally at /pytorch/c10/cuda/CUDAFunctions.cpp:119.)",
            stacklevel=1,
        )
    assert messages == [
        "no GPU is used: The NVIDIA driver on your system is too old (found version 11040). Please update it."
    ]


def test_a_worker_process_is_hushed_before_it_imports_libraries():
    module = "kasatune.experiments.compare.worker_process"
    code = f"import sys, {module}; print(sorted({{'torch', 'transformers', 'peft'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_settings_are_restored():
    from transformers.utils import logging

    before = (logging.get_verbosity(), logging.is_progress_bar_enabled(), warnings.showwarning)
    with pytest.raises(KeyError), quiet():
        assert not logging.is_progress_bar_enabled()
        raise KeyError
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled(), warnings.showwarning) == before


def test_warnings_of_a_method_reach_the_progress_reporter(bert, tmp_path):
    display = Recorder()
    method = {"truncation": "fold"}
    recipe = make_recipe(bert, tmp_path, method=method, model_options={"dtype": "bfloat16"}, epochs=1)
    train(recipe, tmp_path / "run", display=display)
    assert any("rounding W - tail loses" in text for text in display.messages)
