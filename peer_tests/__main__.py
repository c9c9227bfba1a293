"""Run PEFT's own test suite on this project's tuners, and write docs/results/peft-suite.md.

python -m peer_tests PEFT [FILE ...]: PEFT is a checkout or an unpacked source distribution of the installed version;
FILE names test files to run, such as test_custom_models.py (default: every file with LoRA cases).
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from peer_tests import RECORDS, SUITE
from peer_tests.page import write_page

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "runs" / "peer-tests"
FILES = (
    "test_custom_models.py",
    "test_config.py",
    "test_decoder_models.py",
    "test_encoder_decoder_models.py",
    "test_feature_extraction_models.py",
    "test_seq_classifier.py",
    "test_token_classification_qa.py",
    "test_target_parameters.py",
)
"""The files whose lists of cases are not about variants of LoRA, in the order in which they run."""


def main() -> int:
    """Return exit status 1 if a test failed, and 2 if the checkout does not fit."""
    parser = argparse.ArgumentParser(prog="python -m peer_tests", description=__doc__)
    parser.add_argument("peft", type=Path, help="checkout or unpacked source distribution of PEFT")
    parser.add_argument("files", nargs="*", default=FILES, help="test files to run")
    parser.add_argument("--pytest", default="", help="further options of pytest, in one string")
    options = parser.parse_args()
    installed = version("peft")
    fault = checkout_fault(options.peft, installed)
    if fault is not None:
        print(fault, file=sys.stderr)
        return 2
    prepare(options.peft)
    run(options.files, shlex.split(options.pytest))
    return write_page(WORK / "records", ROOT / "docs" / "results" / "peft-suite.md", installed)


def checkout_fault(checkout: Path, installed: str) -> str | None:
    """Why the tests of a checkout do not fit the installed PEFT; None if they do."""
    source = checkout / "src" / "peft" / "__init__.py"
    if not source.is_file() or not (checkout / "tests" / "testing_common.py").is_file():
        return f"{checkout}: no src/peft/__init__.py and tests/testing_common.py, so this is no checkout of PEFT"
    stated = re.search(r'__version__\s*=\s*"([^"]+)"', source.read_text(encoding="utf-8"))
    stated_version = stated.group(1) if stated else "unknown"
    if stated_version != installed:
        return (
            f"{checkout} is PEFT {stated_version}, and {installed} is installed: check out v{installed}, or unpack its "
            f"source distribution (pip download peft=={installed} --no-deps --no-binary :all:)"
        )
    return None


def prepare(checkout: Path) -> None:
    """Copy PEFT's tests into a package of another name."""
    suite = WORK / SUITE
    shutil.rmtree(suite, ignore_errors=True)
    shutil.copytree(checkout / "tests", suite, ignore=shutil.ignore_patterns("regression", "training", "__pycache__"))
    (suite / "__init__.py").touch()
    (WORK / "records").mkdir(exist_ok=True)
    markers = ("single_gpu_tests", "multi_gpu_tests", "regression", "bitsandbytes", "peer_twin")
    lines = "".join(f"    {marker}\n" for marker in markers)
    (WORK / "pytest.ini").write_text(f"[pytest]\nmarkers =\n{lines}", encoding="utf-8")
    (WORK / "models").mkdir(exist_ok=True)


def run(files: Sequence[str], options: list[str]) -> None:
    """Run test files of PEFT; their records replace those of an earlier run.

    With options of pytest, such as -k to select tests, only the records of the tests that run again are replaced.
    """
    records = WORK / "records"
    for file in files if not options else ():
        for suffix in ("jsonl", "count"):
            (records / f"{Path(file).stem}.{suffix}").unlink(missing_ok=True)
    environment = {
        **os.environ,
        RECORDS: str(records),
        "PYTHONPATH": os.pathsep.join([str(WORK), str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]),
        "HF_ENDPOINT": "http://127.0.0.1:9",  # nothing listens there: a name without a model fails at once
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, "-m", "pytest", "-p", "peer_tests.plugin", "-p", "no:cacheprovider", "-q", "--tb=no"]
    command += ["-W", "ignore", "-c", str(WORK / "pytest.ini"), "--rootdir", str(WORK), *options]
    command += [str(WORK / SUITE / file) for file in files]
    subprocess.run(command, env=environment, cwd=WORK / "models", check=False)


if __name__ == "__main__":
    raise SystemExit(main())
