"""The folder of the page: hostile names, uploads and recipes reach nothing outside of it."""

from __future__ import annotations

import pytest

from kasatune.errors import InputError, KasatuneError, OutputError
from kasatune.ui.workspace import Workspace

RECIPE = """
model: {{name: {model}}}
task: {{name: classification, train: {train}, validation: 0.5, text: text, label: label}}
"""


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    root = tmp_path / "root"
    (root / "models" / "m").mkdir(parents=True)
    (root / "models" / "m" / "config.json").write_text("{}")
    (root / "rows.csv").write_text("text,label\na,x\nb,y\nc,x\nd,y\n")
    (tmp_path / "secret.csv").write_text("text,label\na,x\nb,y\n")
    monkeypatch.chdir(root)
    return Workspace.open(root)


@pytest.mark.parametrize(
    "name", ["", "..", "../x", "a/b", "/etc", ".hidden", "-rf", "a\0b", "x" * 65, "a b", "a\nb", "<b>", "é"]
)
def test_only_plain_names_are_taken(workspace, name):
    with pytest.raises(InputError, match="name:"):
        workspace.new("runs", name)


def test_a_name_that_is_taken_is_refused_and_an_empty_folder_is_not(workspace):
    (workspace.root / "runs" / "a").mkdir(parents=True)
    assert workspace.new("runs", "a").as_posix() == "runs/a"
    (workspace.root / "runs" / "a" / "file").write_text("")
    with pytest.raises(OutputError, match="exists"):
        workspace.new("runs", "a")
    (workspace.root / "runs" / "link").symlink_to(workspace.root / "nothing")
    with pytest.raises(OutputError, match="exists"):
        workspace.new("runs", "link")


@pytest.mark.parametrize("path", ["../secret.csv", "/etc/passwd", "", "missing", "a\0b", "x" * 5000, "link", "-x.yaml"])
def test_nothing_outside_is_opened(workspace, path):
    (workspace.root / "link").symlink_to(workspace.root.parent / "secret.csv")
    (workspace.root / "-x.yaml").write_text("")  # a command would take it for an option
    assert "-x.yaml" not in workspace.recipe_names()
    with pytest.raises(InputError):
        workspace.existing(path)


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        ("rows.csv", "uploads/rows.csv"),
        ("../../../etc/cron.csv", "uploads/cron.csv"),
        ("C:\\x\\rows.JSONL", "uploads/rows.jsonl"),
        ("<img src=x onerror=alert(1)>.csv", "uploads/img-src-x-onerror-alert-1.csv"),
        ("; rm -rf ~ #.csv", "uploads/rm--rf.csv"),
        ("....csv", "uploads/rows.csv"),
        ("é\u202e.csv", "uploads/rows.csv"),
        ("n" * 300 + ".csv", f"uploads/{'n' * 52}.csv"),
    ],
)
def test_an_upload_gets_a_safe_name(workspace, sent, stored):
    assert workspace.store_upload(workspace.root / "rows.csv", sent).as_posix() == stored


def test_an_upload_replaces_nothing(workspace):
    first = workspace.store_upload(workspace.root / "rows.csv", "a.csv")
    assert workspace.store_upload(workspace.root / "rows.csv", "a.csv") == first
    (workspace.root / "other").write_text("text,label\n")
    second = workspace.store_upload(workspace.root / "other", "a.csv")
    assert second.name == "a-2.csv"
    (workspace.root / "uploads" / "link.csv").symlink_to(workspace.root.parent / "made.csv")
    assert workspace.store_upload(workspace.root / "other", "link.csv").name == "link-2.csv"
    assert not (workspace.root.parent / "made.csv").exists()


@pytest.mark.parametrize("sent", ["model.safetensors", "page.html", "rows", "rows.csv.exe", "rows.pkl"])
def test_only_tables_are_uploaded(workspace, sent):
    with pytest.raises(InputError, match="give a table"):
        workspace.store_upload(workspace.root / "rows.csv", sent)


def test_a_recipe_inside_is_taken(workspace):
    recipe = workspace.recipe(RECIPE.format(model="models/m", train="rows.csv"), ["training.seed=3"])
    assert recipe.training.seed == 3


@pytest.mark.parametrize(
    ("model", "train", "key"),
    [
        ("models/m", "../secret.csv", "task.train"),
        ("models/m", "/etc/rows.csv", "task.train"),
        ("models/m", "~/rows.csv", "task.train"),
        ("models/m", "link.csv", "task.train"),
        ("/models/m", "rows.csv", "model.name"),
        ("models/../../m", "rows.csv", "model.name"),
    ],
)
def test_a_recipe_that_reads_outside_is_refused(workspace, model, train, key):
    (workspace.root / "link.csv").symlink_to(workspace.root.parent / "secret.csv")
    with pytest.raises(InputError, match=f"{key}: .* is outside of"):
        workspace.recipe(RECIPE.format(model=model, train=train))


def test_a_recipe_may_read_a_folder_that_was_named(workspace):
    wider = Workspace.open(workspace.root, [workspace.root.parent])
    text = RECIPE.format(model="models/m", train=workspace.root.parent / "secret.csv")
    assert wider.recipe(text).task.train.endswith("secret.csv")


@pytest.mark.parametrize(
    "override",
    [
        "--overwrite",
        "output=/tmp/x",
        "model.trust_remote_code=true",
        "task.train=/etc/passwd",
        "-x=1",
        "method.tails=/x",
    ],
)
def test_a_change_reaches_no_further_than_the_recipe(workspace, override):
    with pytest.raises(KasatuneError):
        workspace.recipe(RECIPE.format(model="models/m", train="rows.csv"), [override])


@pytest.mark.parametrize("text", ["", "[1", "a: &a [*a]", "!!python/object:os.system {}", "x" * 70_000, "\0", "5"])
def test_a_text_that_is_no_recipe_is_one_error(workspace, text):
    with pytest.raises(KasatuneError):
        workspace.recipe(text)
