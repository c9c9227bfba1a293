from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import pytest

import kasatune as package
from kasatune import __main__ as entry_point
from kasatune.cli.main import COMMANDS, build_app, describe
from kasatune.errors import DivergedError, InputError

HEAVY = ("torch", "transformers", "peft", "pandas", "sklearn", "datasets", "matplotlib", "scipy")


def python(code: str, *argv: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, **options)


@pytest.mark.parametrize("argv", [["--help"], ["list", "methods"], ["list", "tasks", "--json"], ["list", "recipes"]])
def test_help_and_lists_import_nothing_heavy(argv):
    code = (
        "import sys; from kasatune.cli.main import run; status = run(sys.argv[1:]); "
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr); sys.exit(status)"
    )
    done = python(code, *argv)
    assert (done.returncode, done.stderr.strip()) == (0, "[]")


def test_a_faulty_recipe_imports_nothing_heavy(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("task: {name: nothing}")
    code = (
        "import sys; from kasatune.cli.main import run; status = run(sys.argv[1:]); "
        f"print([name for name in {HEAVY!r} if name in sys.modules]); sys.exit(status)"
    )
    done = python(code, "train", str(recipe))
    assert (done.returncode, done.stdout.strip()) == (2, "[]")


def test_the_help_names_every_command_and_each_command_has_an_example(kasatune):
    overview = kasatune("--help")
    assert overview.status == 0
    for name in COMMANDS:
        assert f" {name} " in overview.out
        own = kasatune(name, "--help")
        assert own.status == 0
        assert f"kasatune {name}" in own.out.replace("Usage: kasatune", "")


def test_no_arguments_show_the_help(kasatune):
    done = kasatune()
    assert (done.status, done.err) == (0, "")
    assert done.out.split() == kasatune("--help").out.split()


def test_version(kasatune):
    assert kasatune("--version") == (0, f"kasatune {package.__version__}\n", "")


def test_python_m_kasatune_is_the_command():
    done = subprocess.run([sys.executable, "-m", "kasatune", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"kasatune {package.__version__}\n")
    done = subprocess.run([sys.executable, "-m", "kasatune", "lst"], capture_output=True, text=True)
    assert done.returncode == 2


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["lst"], "Did you mean 'list'?"),
        (["list"], "Missing argument"),
        (["list", "models"], "'methods', 'tasks', 'recipes'"),
        (["list", "tasks", "--jsn"], "--jsn"),
        (["train"], "Missing argument"),
        (["train", "r.yaml", "--out"], "requires an argument"),
        (["export", "d"], "--out"),
        (["predict"], "Missing argument"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(kasatune, argv, words):
    done = kasatune(*argv)
    assert (done.status, done.out) == (2, "")
    assert words in done.err
    assert len(done.err.splitlines()) == 1


def raising(error: BaseException, monkeypatch):
    def command() -> None:
        """Fail."""
        raise error

    import kasatune.cli.commands.listing as listing

    monkeypatch.setattr(listing, "command", command)


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (InputError("r: 0, too small"), 2, "r: 0, too small"),
        (DivergedError("loss is NaN"), 1, "loss is NaN"),
        (OSError(errno.ENOSPC, "No space left on device", "out/x"), 1, "out/x: No space left on device; free"),
        (PermissionError(errno.EACCES, "Permission denied", "p"), 1, "p: Permission denied"),
        (MemoryError(), 1, "gradient_accumulation"),
        (KeyError("k"), 1, "KASATUNE_DEBUG=1"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_become_a_message_and_a_status(kasatune, monkeypatch, error, status, words):
    raising(error, monkeypatch)
    done = kasatune("list")
    assert (done.status, done.out) == (status, "")
    assert done.err.startswith("error: ") or status == 130
    assert words in done.err
    assert "Traceback" not in done.err


def test_ctrl_c_while_the_command_line_is_imported_shows_no_traceback(monkeypatch, capsys):
    class Interrupted:
        def find_spec(self, name, path=None, target=None):
            if name == "kasatune.cli.main":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "kasatune.cli.main")
    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    assert entry_point.run() == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_debug_shows_the_traceback(kasatune, monkeypatch):
    raising(InputError("broken"), monkeypatch)
    monkeypatch.setenv("KASATUNE_DEBUG", "1")
    done = kasatune("list")
    assert done.status == 2
    assert "Traceback" in done.err
    assert "error: broken" in done.err


def test_notes_of_an_interrupt_say_what_was_kept():
    interrupt = KeyboardInterrupt()
    interrupt.add_note("out keeps what was done")
    assert describe(interrupt) == ("interrupted; out keeps what was done", 130)


def test_a_closed_pipe_is_quiet():
    shell = f"{sys.executable} -m kasatune list tasks --json | true; echo ${{PIPESTATUS[0]}}"
    for _ in range(3):
        done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True)
        assert done.stderr == ""
        assert done.stdout.strip() in ("0", "1")


def test_output_that_the_terminal_cannot_write_is_escaped(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "kasatune", "train", "réglage.yaml"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert b"no such file" in done.stderr
    assert b"Traceback" not in done.stderr


def test_every_command_is_one_file_with_one_function():
    names = [command.name for command in build_app().registered_commands]
    assert names == list(COMMANDS)
    assert all(command.callback.__name__ == "command" for command in build_app().registered_commands)


def test_a_method_that_was_rebuilt_is_listed_as_such(kasatune):
    (line,) = [line for line in kasatune("list", "methods").out.splitlines() if line.startswith("sara ")]
    assert "SARA (reconstructed)" in line
    rows = json.loads(kasatune("list", "methods", "--json").out)
    assert {row["name"]: row["title"] for row in rows}["sara"] == "SARA (reconstructed)"


@pytest.mark.parametrize("kind", ["methods", "tasks", "recipes"])
def test_lists_as_json_are_objects_with_a_name(kasatune, kind):
    done = kasatune("list", kind, "--json")
    rows = json.loads(done.out)
    assert (done.status, done.err) == (0, "")
    assert rows
    assert all(isinstance(row["name"], str) for row in rows)
    assert len({row["name"] for row in rows}) == len(rows)
    lines = kasatune("list", kind).out.splitlines()
    begun = [line.split(maxsplit=1)[0] for line in lines if not line.startswith(" ")]
    assert begun == [row["name"] for row in rows]
    assert all(len(line) <= 80 for line in lines)


def test_one_method_is_listed_with_all_its_facts(kasatune):
    done = kasatune("list", "methods", "lora-plus")
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith("name              lora-plus\n")
    assert "ratio = " in done.out
    assert all(len(line) <= 80 for line in done.out.splitlines())
    (row,) = json.loads(kasatune("list", "methods", "lora-plus", "--json").out)
    assert row["name"] == "lora-plus"
    wrong = kasatune("list", "methods", "lroa")
    assert (wrong.status, wrong.out) == (2, "")
    assert "did you mean lora" in wrong.err


def test_runs_below_a_folder_are_listed(kasatune, tmp_path, monkeypatch):
    run = tmp_path / "deep" / "a"
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text("{task: {name: glue/rte}, method: {name: kasa}, model: {name: m}}")
    (run / "history.jsonl").write_text("")
    monkeypatch.chdir(tmp_path)
    assert kasatune("list", "runs").out == "deep/a  stopped: kasa on glue/rte\n"
    (run / "metrics.json").write_text('{"metrics": {"accuracy": 0.5}, "seconds": {"train": 2.0}}')
    assert kasatune("list", "runs", "deep").out == "a  finished: kasa on glue/rte, accuracy 0.5000\n"
    (run / "recipe.yaml").write_text("a: &a [*a]")
    assert kasatune("list", "runs").out == "deep/a  damaged\n"
    assert kasatune("list", "runs", "missing").status == 2
