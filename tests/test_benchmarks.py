"""The table of all benchmarks shows what failed, and the fits of the scaling page find what they were given."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from benchmarks import __main__ as bench
from benchmarks import gpu, language_model, scaling
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


def test_the_gpu_benchmark_measures_a_model_that_came_in_parts(llama, tmp_path, monkeypatch):
    """On the processor, with small shapes: every figure is there, and the model is the one that was split."""
    torch.manual_seed(0)
    monkeypatch.setattr(gpu, "PART_BYTES", 20_000)
    gpu.main(["--split", str(llama), "--model-file", str(tmp_path / "toy")])
    parts = sorted(tmp_path.glob("toy.*"))
    assert len(parts) > 1 and max(part.stat().st_size for part in parts) <= 20_000
    gpu.main(["--device", "cpu", "--small", "--out", str(tmp_path / "page"), "--model-file", str(tmp_path / "toy")])
    record = json.loads((tmp_path / "page" / "gpu-quick.json").read_text(encoding="utf-8"))
    figures = " ".join(row["what"] for row in record["rows"])
    for what in ("decomposition", "attaching", "loading", "a step of 1 blocks", "language model, KaSA", "2 seeds"):
        assert what in figures, what
    assert "The language model is toy" in (tmp_path / "page" / "gpu-quick.md").read_text(encoding="utf-8")


def test_the_gpu_benchmark_leaves_out_what_the_time_does_not_allow(tmp_path, monkeypatch):
    calls = []
    for name in ("decomposition", "attaching", "loading", "wide_step", "language_model", "seeds"):
        monkeypatch.setattr(gpu, name, lambda *_, name=name: calls.append(name))
    monkeypatch.setattr(gpu, "_random_llama", lambda *, small: torch.nn.Linear(1, 1))
    monkeypatch.setattr(gpu.Text, "_draw", lambda self: [])
    gpu.main(["--device", "cpu", "--minutes", "0.4", "--out", str(tmp_path)])
    assert calls == ["loading"]
    page = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert "Left out, because 0.4 minutes did not suffice: decomposition, attaching, wide steps" in page


def test_the_page_of_the_language_model_compares_steps_of_equal_number():
    def run(seconds, losses, peak, resident=100):
        return {"seconds": seconds, "losses": losses, "peak": peak, "resident": resident}

    runs = {
        "a Trainer": run([9.0, 2.0, 4.0, 2.0], [3.0, 2.0, 1.5, 1.0], 300),
        "a lora": run([1.0, 1.0, 3.0, 1.5], [3.0, 2.0, 1.5, 1.00002], 250),
        "c lora": run([1.0, 2.2], [3.0, 2.0], 180),
        "attach": {"seconds": [3.5, 2.4], "layers": 210},
    }
    rows = {row.what: row for row in language_model.table(runs)}
    assert rows["(a) LoRA / PEFT's LoRA, Trainer: a step"].ratio == 0.75
    assert rows["(a) LoRA / PEFT's LoRA, Trainer: peak memory"].ratio == pytest.approx(250 / 300)
    [losses] = [row for what, row in rows.items() if "largest difference" in what]
    assert losses.ratio == pytest.approx(2.0) and losses.verdict == "MISSED"
    checkpointed = "(c) LoRA, checkpointing / PEFT's LoRA, Trainer, without: "
    assert rows[checkpointed + "memory above that before the first step"].ratio == pytest.approx(0.4)
    assert rows[checkpointed + "a step"].ratio == pytest.approx(1.1)
    assert rows["attaching KaSA to 210 layers, tails computed anew"].ratio == pytest.approx(0.8)
    assert not any("KaSA /" in what for what in rows)


def test_an_arm_that_truncates_the_base_in_place_leaves_it_as_it_was():
    from benchmarks.forgetting import ARMS, Texts, run

    base = llama().bfloat16()
    before = {name: value.clone() for name, value in base.state_dict().items()}
    rows = [([3, 4, 5], [6 + i % 4, 7, 8]) for i in range(24)]
    result = run(base, Texts(rows, rows[:4], rows[4:8]), ARMS["peft-kasa"](), 1e-2, seed=0, steps=3)
    assert result["start"]["e2e"] != result["end"]["e2e"]
    assert all(bool((value == before[name]).all()) for name, value in base.state_dict().items())


def test_the_page_of_forgetting_lists_what_was_tried_and_what_was_not_run():
    from benchmarks.forgetting_page import AKASA, CONFIRM_SEEDS, KASA, LORA, SEARCH_SEEDS, Runs, page

    base = {"e2e": 3.0, "unrelated": 2.2}

    def record(arm, rate, seed, confirm, e2e, unrelated, start=None):
        wobble = 0.001 * (seed % 3)
        end = {"e2e": e2e + wobble, "unrelated": unrelated - wobble}
        key = {"arm": arm, "rate": rate, "seed": seed, "steps": 40, "confirm": confirm}
        return {**key, "base": base, "start": start, "end": end, "machine": {"threads": 1}}

    runs = [record(*point, seed, False, 1.3, 2.3) for point in LORA for seed in SEARCH_SEEDS]
    runs += [record(*point, seed, False, 1.3, 2.2) for point in AKASA for seed in SEARCH_SEEDS]
    confirmed = ((LORA[0], 2.3), (AKASA[0], 2.2), (KASA, 2.6))
    runs += [record(*point, seed, True, 1.3, level) for point, level in confirmed for seed in CONFIRM_SEEDS]
    runs.append(record("peft-kasa", 0.004, 0, False, 1.6, 4.0, start={"e2e": 8.4, "unrelated": 8.5}))
    text = page(Runs(runs))
    assert "**akasa wins: its loss differs from LoRA's by -0.1000" in text
    assert "| peft-kasa | 0.004 | 1 | 8.400, 8.500 | 1.6000 | 4.0000 |" in text
    not_run = text.split("Not run: ")[1].split(".\n")[0]
    assert "oplora" in not_run and "peft-kasa" not in not_run
