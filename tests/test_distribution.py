"""What is installed: the files in wheel and sdist, and the two rings of dependencies (core and `kasatune[train]`)."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from kasatune.errors import MissingExtraError
from kasatune.io.train_extra import TRAIN_MODULES, TRAIN_VERSIONS, require_train_extra

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BLOCK = """
import sys
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = classmethod(lambda _, name, *rest: None if name.split(".")[0] in {!r} else find(name, *rest))
"""


def distributions(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=! ]", requirement)[0].lower().replace("_", "-") for requirement in requirements}


def test_the_entry_point_checks_for_every_package_that_the_extra_train_adds():
    homes = importlib.metadata.packages_distributions()
    checked = {homes[module][0].lower().replace("_", "-") for module in TRAIN_MODULES}
    assert checked | TRAIN_VERSIONS.keys() == distributions(PROJECT["optional-dependencies"]["train"])


def test_the_entry_point_checks_for_the_versions_that_the_extra_train_needs():
    bounds = dict(line.split(">=") for line in PROJECT["optional-dependencies"]["train"])
    assert {name: bounds[name] for name in TRAIN_VERSIONS} == TRAIN_VERSIONS


@pytest.mark.parametrize(
    ("versions", "text"),
    [
        ({"peft": "0.20.0"}, "peft 0.21.2 or newer (0.20.0 is installed)"),
        ({"peft": "0.21.2", "transformers": "5.9.1"}, "transformers 5.20 or newer (5.9.1 is installed)"),
        (
            {"accelerate": "1.13.0", "transformers": "5.20.0.dev0", "peft": "0.9"},
            "accelerate 1.15 or newer (1.13.0 is installed), and peft 0.21.2 or newer (0.9 is installed)",
        ),
    ],
)
def test_a_package_that_is_too_old_for_the_extra_is_named_with_both_versions(monkeypatch, versions, text):
    present = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: versions.get(name) or present(name))
    with pytest.raises(MissingExtraError) as fault:
        require_train_extra("kasatune.train")
    assert str(fault.value) == f"kasatune.train needs {text}: pip install 'kasatune[train]'"


def test_pandas_matplotlib_and_nltk_are_in_neither_ring():
    rings = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["train"]
    assert not distributions(rings) & {"pandas", "matplotlib", "nltk"}


@pytest.mark.parametrize(("blocked", "verb"), [(["typer"], "is"), (["datasets", "pydantic"], "are")])
def test_a_command_without_the_extra_names_what_is_missing_and_what_installs_it(blocked, verb):
    code = BLOCK.format(blocked) + "from kasatune.__main__ import run; sys.exit(run())"
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    missing = ", ".join(blocked)
    assert done.stderr == (
        f"error: the command line needs {missing}, which {verb} not installed: pip install 'kasatune[train]'\n"
    )


@pytest.fixture(scope="module")
def without_train():
    """Lines printed by one process in which no package of the train ring can be imported.

    typer, rich, yaml, jinja2, markupsafe and huggingface_hub are left: transformers, torch and PEFT bring them.
    """
    blocked = {"pydantic", "datasets", "pyarrow", "sklearn", "pandas", "matplotlib", "nltk", "sacrebleu"}
    code = BLOCK.format(blocked) + (
        "import tempfile, torch, kasatune\n"
        "from kasatune.errors import MissingExtraError\n"
        "from peft import PeftModel, get_peft_model\n"
        "from transformers import BertConfig, BertModel\n"
        "for name in kasatune.__all__:\n"
        "    try:\n"
        "        getattr(kasatune, name)\n"
        "    except MissingExtraError as fault:\n"
        "        print(name, fault, sep=': ')\n"
        "try:\n"
        "    from kasatune import train\n"
        "except ImportError as fault:\n"
        "    print('import:', fault)\n"
        "sizes = dict(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)\n"
        "torch.manual_seed(0); model = BertModel(BertConfig(**sizes)).eval()\n"
        "base = {name: value.clone() for name, value in model.state_dict().items()}\n"
        "tuned = get_peft_model(model, kasatune.KasaConfig(r=2, target_modules=['query']))\n"
        "kasatune.regularization(tuned).backward()\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    kasatune.export_adapter(tuned, folder + '/lora', to='lora')\n"
        "    other = BertModel(BertConfig(**sizes)); other.load_state_dict(base)\n"
        "    kasatune.load_adapter(other.eval(), folder + '/lora')\n"
        "print('done')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_tuner_works_without_the_extra_train(without_train):
    """A model gets a KaSA adapter, is exported as LoRA, and is loaded again."""
    assert without_train[-1] == "done"


def test_public_names_of_the_extra_name_what_installs_it_and_the_others_are_importable_without_it(without_train):
    names = ["compare", "evaluate", "load_recipe", "predict", "shrink_adapter", "train"]
    wanted = [
        f"kasatune.{name} needs datasets, pyarrow, pydantic, sacrebleu, sklearn, which are not installed: "
        "pip install 'kasatune[train]'"
        for name in [*names, "train"]
    ]
    assert without_train[:-1] == [f"{key}: {text}" for key, text in zip([*names, "import"], wanted, strict=True)]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Names of the files in the wheel and in the sdist, built from a copy of the sources."""
    pytest.importorskip("setuptools", minversion="77", reason="builds with setuptools, like pip")
    copy, out = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("dist")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(
        ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"), symlinks=True
    )
    code = (
        f"from setuptools import build_meta; build_meta.build_wheel({str(out)!r}); build_meta.build_sdist({str(out)!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as file, tarfile.open(sdist) as archive:
        inside = [name.partition("/src/")[2] for name in archive.getnames()]
        return set(file.namelist()), set(inside)


def test_wheel_and_sdist_hold_every_file_of_the_package(built):
    package = ROOT / "src"
    paths = [path for path in (package / "kasatune").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    wanted = {path.relative_to(package).as_posix() for path in paths}
    assert {Path(name).suffix for name in wanted} >= {".py", ".yaml", ".html", ".css", ".md", ".typed"}
    for files in built:
        assert wanted <= files, wanted - files


def test_the_package_holds_no_link():
    assert not [path for path in (ROOT / "src").rglob("*") if path.is_symlink()]
