"""What SECURITY.md promises beyond what the bad inputs show."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import kasatune
from kasatune.cli.main import run
from kasatune.cli.run_summary import write_pages
from kasatune.errors import InputError, RecipeError
from kasatune.redaction import may_run_for_ever, presentable, redacted
from kasatune.training.train import train
from tests.toys import make_bert, make_recipe

SOURCES = sorted(Path(kasatune.__file__).parent.rglob("*.py"))
FORBIDDEN_MODULES = {"pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "os.system",
    "torch.load",
    "torch.save",
    "yaml.load",
    "yaml.unsafe_load",
    "pickle.loads",
}
TOKEN = "hf_" + "abcdefghijklmnopqrstuvwxyz"


def called(node: ast.Call) -> str:
    return ast.unparse(node.func)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(SOURCES[0].parent)))
def test_no_pickle_and_no_code_out_of_files(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not {alias.name.partition(".")[0] for alias in node.names} & FORBIDDEN_MODULES
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").partition(".")[0] not in FORBIDDEN_MODULES
        elif isinstance(node, ast.Call):
            assert called(node) not in FORBIDDEN_CALLS
            for keyword in node.keywords:
                assert not (keyword.arg in ("shell", "trust_remote_code") and ast.unparse(keyword.value) == "True")


def test_the_reader_of_yaml_knows_no_python():
    from kasatune.recipes.yaml_io import parse_yaml

    with pytest.raises(ValueError, match="tags are not allowed"):
        parse_yaml("!!python/object/apply:os.getcwd []")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:hunter2@hub.example/m", "https://***@hub.example/m"),
        ("ftp://me@x/a", "ftp://***@x/a"),
        ("https://x/a?b=1&token=abcdef&c=2", "https://x/a?b=1&token=***&c=2"),
        (f"no access with {TOKEN}.", "no access with hf_***."),
        ("ghp_abcdefghijklmnopqrstu and AKIA0123456789ABCDEF", "ghp_*** and AKIA***"),
        ("hf_short and sk-learn are words", "hf_short and sk-learn are words"),
        (
            "runs/hf_a_long_name_of_a_run sk-a-long-name-of-a-run",
            "runs/hf_a_long_name_of_a_run sk-a-long-name-of-a-run",
        ),
        ("a@b.c wrote https://hub.example/m@main", "a@b.c wrote https://hub.example/m@main"),
    ],
)
def test_secrets_are_masked(text, shown):
    assert redacted(text) == shown


def test_secrets_of_the_environment_are_masked(monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "a secret of any form")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false and long")
    monkeypatch.setenv("SSH_KEY", "/home/me")
    assert redacted("/home/me/a.csv") == "/home/me/a.csv"
    assert redacted("key 'a secret of any form', false and long") == "key '***', false and long"
    assert "***" in str(InputError("it is a secret of any form"))
    assert RecipeError(["it is a secret of any form"]).faults == ("it is ***",)


def test_messages_do_not_steer_a_terminal():
    assert presentable("a\x1b[31mb\nc\u202e") == "a\\x1b[31mb\nc\\u202e"


@pytest.mark.parametrize("pattern", ["(a+)+", "(a|a)*", "((a)*b)*", "x" * 200_000])
def test_patterns_that_may_run_for_ever(pattern):
    assert may_run_for_ever(pattern)


@pytest.mark.parametrize(
    "pattern", [r".*\.(q_proj|v_proj)$", r"model\.layers\.\d+\.attn", "[(a+)]+", r"(layer\.)?query"]
)
def test_patterns_that_do_not(pattern):
    assert not may_run_for_ever(pattern)


def test_reports_escape_names_and_hold_no_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.chdir(tmp_path)
    odd = "<script>alert(1)</script>"
    folder = "<img src=x onerror=alert(1)>"
    make_bert(tmp_path / folder)
    recipe = make_recipe(folder, tmp_path, epochs=1)
    for name in ("train.csv", "validation.csv"):
        text = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text.replace("text,label", f"{odd},label").replace("label1", odd))
    recipe = recipe.model_copy(update={"task": recipe.task.model_copy(update={"text": odd}), "output": "run"})
    train(recipe, tmp_path / "run")
    write_pages(tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert "default-src 'none'" in page
    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(written) > 8
    assert not [path for path in written if TOKEN.encode() in path.read_bytes()]


def test_an_unexpected_error_is_masked_too(monkeypatch, capsys):
    def fails(*_):
        raise RuntimeError(f"401 for https://hub.example with {TOKEN}")

    monkeypatch.setattr("kasatune.cli.main._invoke", fails)
    assert run(["list", "tasks"]) == 1
    assert "hf_***" in capsys.readouterr().err
