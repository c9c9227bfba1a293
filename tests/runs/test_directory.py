from __future__ import annotations

import pytest

from kasatune.errors import InputError, OutputError
from kasatune.runs import directory
from kasatune.runs.metrics import read_metrics
from tests.toys import make_recipe


@pytest.fixture
def recipe(tmp_path):
    return make_recipe("some/model", tmp_path / "data")


def check(out, recipe, *, resume=False, overwrite=False):
    directory.check_output(out, recipe, resume=resume, overwrite=overwrite)


def test_a_new_or_empty_directory_may_be_written_and_nothing_is_made_yet(recipe, tmp_path):
    check(tmp_path / "deep" / "run", recipe)
    assert not (tmp_path / "deep").exists()
    (tmp_path / "empty").mkdir()
    check(tmp_path / "empty", recipe)


def test_what_a_kill_leaves_before_anything_is_finished_is_no_run(recipe, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / ".lock").write_text("")
    (run / ".recipe.yaml.unfinished").write_text("model: {na")
    for resume in (False, True):
        check(run, recipe, resume=resume)
    directory.begin(run, recipe, resume=True)
    assert sorted(path.name for path in run.iterdir()) == [".lock", "recipe.yaml", "unfinished"]


def test_a_file_or_a_path_through_one_is_refused(recipe, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="is a file"):
        check(tmp_path / "file", recipe, overwrite=True)
    with pytest.raises(OutputError, match="cannot be made"):
        check(tmp_path / "file" / "run", recipe)


def test_resume_and_overwrite_exclude_each_other(recipe, tmp_path):
    with pytest.raises(OutputError, match="exclude each other"):
        check(tmp_path / "run", recipe, resume=True, overwrite=True)


def test_the_output_and_the_trackers_may_differ_when_resuming(recipe, tmp_path):
    directory.begin(tmp_path / "run", recipe, resume=False)
    training = recipe.training.model_copy(update={"report_to": ["tensorboard"]})
    check(tmp_path / "run", recipe.model_copy(update={"output": "elsewhere", "training": training}), resume=True)


def test_what_is_not_a_run_directory_is_said_to_be_none(tmp_path):
    with pytest.raises(InputError, match=r"no recipe\.yaml"):
        directory.read_recipe(tmp_path / "nothing")
    with pytest.raises(InputError, match="not finished"):
        read_metrics(tmp_path)
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        read_metrics(tmp_path)


def test_publishing_replaces_whole_folders(tmp_path):
    old, staged = tmp_path / "run", tmp_path / "run" / "unfinished" / "staged"
    (old / "adapter").mkdir(parents=True)
    (old / "adapter" / "old.txt").write_text("old")
    (staged / "adapter").mkdir(parents=True)
    (staged / "adapter" / "new.txt").write_text("new")
    (staged / "spectrum.json").write_text("{}")
    directory.publish(staged, old)
    assert sorted(path.name for path in (old / "adapter").iterdir()) == ["new.txt"]
    assert (old / "spectrum.json").exists()
    assert list((old / "unfinished").iterdir()) == []
