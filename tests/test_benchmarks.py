"""The table of all benchmarks shows what failed, and the fits of the scaling page find what they were given."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from benchmarks import __main__ as bench
from benchmarks import scaling
from benchmarks.harness import Row

from kasatune.methods import METHODS
from kasatune.recipes.schema import MethodSection
from tests.kasa.models import llama


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    """Benchmarks that do what they are told in the place of the real ones."""
    monkeypatch.setattr(bench, "RESULTS", tmp_path)
    row = {"what": "time", "ours": "1.0 ms", "peer": "2.0 ms", "ratio": 0.5, "target": 0.4}
    record, content = str(tmp_path / "good-quick.json"), json.dumps({"rows": [row]})
    does = {
        "good": f"from pathlib import Path; Path({record!r}).write_text({content!r})",
        "bad": "raise SystemExit('the reason')",
        "silent": "pass",
        "slow": "import time; time.sleep(60)",
    }
    original = subprocess.run

    def run(command, **options):
        assert command[:2] == [sys.executable, "-m"] and command[3] == "--quick"
        return original([sys.executable, "-c", does[command[2].removeprefix("benchmarks.")]], **options)

    monkeypatch.setattr(bench.subprocess, "run", run)
    return lambda *names: monkeypatch.setattr(bench, "SCRIPTS", names)


def test_one_failure_stops_nothing_and_is_shown(scripts, tmp_path, capsys):
    scripts("bad", "good", "silent")
    (tmp_path / "silent-quick.json").write_text("an earlier run's")
    assert bench.main() == 1
    shown = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in shown[1:]] == ["bad", "good", "silent"]
    assert "FAILED, exit status 1: the reason" in shown[1]
    assert shown[2].split()[-3:] == ["0.500", "0.4", "MISSED"]
    assert "FAILED, wrote no silent-quick.json" in shown[3]
    page = (tmp_path / "bench.md").read_text()
    assert "0 targets met, 1 missed" in page and "| bad: FAILED, exit status 1: the reason |" in page


def test_all_scripts_together_have_a_deadline(scripts, monkeypatch, capsys):
    scripts("slow", "good", "good")
    monkeypatch.setattr(bench, "ALL", 1.0)
    assert bench.main() == 1
    shown = capsys.readouterr().out.splitlines()
    assert "slow: FAILED, not done after 1 s" in shown[1]
    assert ["FAILED, no time was left" in line for line in shown[2:]] == [True, True]


def test_success_is_status_0(scripts):
    scripts("good")
    assert bench.main() == 0


def test_a_verdict_compares_with_the_target():
    assert [Row("", "", "", 1.0, target).verdict for target in (None, 1.0, 0.9)] == ["", "met", "MISSED"]


def test_the_exponent_of_a_power_law_is_found():
    power, error = scaling.slope([1, 2, 4, 8], [3 * x**2.5 for x in (1, 2, 4, 8)])
    assert power == pytest.approx(2.5) and error < 1e-6


def test_a_forecast_takes_fixed_and_growing_shares_apart():
    draw = np.random.default_rng(1)
    columns = np.array([[count, work] for count in (7, 14, 28) for work in (1e6, 1e7, 1e8)])
    exact = columns @ np.array([2e-3, 3e-9])
    value, low, high = scaling.extrapolated(columns, exact, np.array([224, 1e11]))
    assert value == pytest.approx(224 * 2e-3 + 300) and low == pytest.approx(value) and high == pytest.approx(value)
    noisy = exact * draw.uniform(0.8, 1.25, len(exact))
    value, low, high = scaling.extrapolated(columns, noisy, np.array([224, 1e11]))
    assert low < 224 * 2e-3 + 300 < high and low < value < high


def test_the_forecast_s_shapes_are_of_their_size():
    for name, (hidden, intermediate, layers, narrow) in scaling.FORECAST.items():
        numbers = scaling.numbers(scaling.shapes(hidden, intermediate, layers, narrow))
        assert 0.8 < numbers / (float(name) * 1e9) < 1.0  # embeddings are the rest


def test_every_method_arm_of_the_forgetting_benchmark_is_a_method_of_the_table():
    from benchmarks.forgetting import ARMS, METHOD_ARMS

    assert not set(ARMS) & set(METHOD_ARMS)
    for values in METHOD_ARMS.values():
        section = MethodSection(**values)
        assert not list(METHODS[section.name].option_faults(section.options))


@pytest.mark.parametrize("arm", ["kasa-anneal-0.5", "lora-ga", "lora-null"])
def test_a_method_arm_trains_and_leaves_the_base_as_it_was(arm):
    from benchmarks.forgetting import METHOD_ARMS, Texts, run_method

    base = llama().bfloat16()
    before = {name: value.clone() for name, value in base.state_dict().items()}
    rows = [([3, 4, 5], [6 + i % 4, 7, 8]) for i in range(24)]
    result = run_method(base, Texts(rows, rows[:4], rows[4:8]), METHOD_ARMS[arm], 1e-2, seed=0, steps=3)
    assert result["start"]["e2e"] > result["end"]["e2e"]
    assert before.keys() == base.state_dict().keys()
    assert all(bool((value == before[name]).all()) for name, value in base.state_dict().items())
