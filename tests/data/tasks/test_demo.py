"""The demo's rows: real, repeatable, without their label in the text, and split without copies."""

import json
import os
import re
import subprocess
import sys

import pytest

from kasatune.data.readers.docstrings import clean, digest, docstrings, mask
from kasatune.data.tasks import demo, load_evaluation, load_task
from kasatune.errors import DataError
from tests.data.tasks.settings import Settings

NAMES = mask(("numpy", "torch"), ("np",))
SMALL = """
import json, sys
from kasatune.data.tasks import demo, load_task
from tests.data.tasks.settings import Settings
demo.MAX_TRAIN, demo.MAX_HELD_OUT = 90, 60
data = load_task(Settings("demo", max_eval=500))
heavy = [name for name in demo.LIBRARIES.values() if name in sys.modules]
print(json.dumps([data.sha256, data.source, data.notes, heavy, data.label_names,
                  {name: [rows.first, rows.labels] for name, rows in data.splits.items()}]))
"""


def small(hash_seed):
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run([sys.executable, "-c", SMALL], capture_output=True, text=True, env=environment, check=True)
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def real():
    return small("1")


def test_rows_do_not_depend_on_the_run(real):
    assert small("2") == real


def test_nothing_is_imported(real):
    assert real[3] == []


def test_labels_are_balanced_and_mixed(real):
    names, splits = real[4], real[5]
    assert tuple(names) == tuple(demo.LIBRARIES)
    for split, each in (("train", 90), ("validation", 55)):
        labels = splits[split][1]
        assert len(labels) == (9 * 90 if split == "train" else 500)
        assert all(each - 12 <= labels.count(number) <= (90 if split == "train" else 60) for number in range(9))
        assert len(set(labels[:40])) > 5


def test_no_text_names_a_library(real):
    for texts, _ in real[5].values():
        for text in texts:
            assert not re.search(
                r"numpy|scipy|sklearn|pydantic|hugging|torch|sympy|networkx|transformers|\bnp\.", text, re.I
            )
            assert demo.MIN_WORDS <= len(text.split()) <= demo.MAX_WORDS


def test_no_held_out_text_is_nearly_a_training_text(real):
    def triples(text):
        words = re.findall("[a-z0-9]+", text.lower())
        return {" ".join(words[i : i + 3]) for i in range(len(words) - 2)}

    trained = [triples(text) for text in real[5]["train"][0]]
    for text in real[5]["validation"][0][::5]:
        own = triples(text)
        assert all(len(own & other) < 0.5 * len(own) for other in trained)


def test_source_and_limits_are_reported(real):
    assert "numpy 2" in real[1]
    assert any(note.startswith("validation: the first 500 of 5") for note in real[2])


def package(folder, name, **modules):
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text("raise RuntimeError('imported')")
    for module, texts in modules.items():
        functions = "".join(f'def f{i}():\n    """{text}"""\n\n' for i, text in enumerate(texts))
        (folder / name / f"{module}.py").write_text(functions)


WORDS = [f"{digest(str(i))[:6]}" for i in range(5000)]


def sentence(start, words=12):
    return " ".join(WORDS[start : start + words])


def test_strings_of_a_package(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    package(
        tmp_path, "made_up", one=["a b c d e", "short", "a b c d f"], two=["g h i j k l"], test_three=["x y z x y z"]
    )
    (tmp_path / "made_up" / "broken.py").write_text("def f(:\n")
    (tmp_path / "made_up" / "latin.py").write_bytes(b'"""caf\xe9 a b c d e"""\n')
    (tmp_path / "made_up" / "nested.py").write_text(
        '"""m m m m m m"""\nclass C:\n    """c c c c c c"""\n    def m(self):\n        """d d d d d d"""\n'
        '        def inner():\n            """i i i i i i"""\n'
    )
    found = list(docstrings("made_up", NAMES, min_words=3, max_words=5, max_per_file=10))
    expected = {"a b c d e", "a b c d f", "g h i j k", "m m m m m", "c c c c c", "d d d d d"}
    assert {string.text for string in found} == expected
    assert {string.module for string in found} == {"made_up/one.py", "made_up/two.py", "made_up/nested.py"}
    assert len(list(docstrings("made_up", NAMES, min_words=3, max_words=5, max_per_file=1))) == 3
    with pytest.raises(DataError, match="the package not_there is not installed"):
        list(docstrings("not_there", NAMES, min_words=3, max_words=5, max_per_file=1))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A numpy.ndarray, NumPy or np.add; PyTorch-like", "A _, _ or _; Py_"),
        ("Sum.\n\n>>> np.sum(x)\n3", "Sum."),
        ("Title\n=====\n- - see https://numpy.org/doc ok", "Title - - see ok"),
        ("a  b\n\tc d e f", "a b c d e"),
    ],
)
def test_cleaning(text, expected):
    assert clean(text, NAMES, 5 if expected.startswith("a") else 50) == expected


@pytest.fixture
def two_libraries(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(demo, "LIBRARIES", {"pytest": "lib_one", "ruff": "lib_two"})
    monkeypatch.setattr(demo, "MIN_WORDS", 5)
    monkeypatch.setattr(demo, "_MIN_ROWS", 1)
    return tmp_path


def files(held_out, name, count):
    """Names of modules that the demo holds out, or does not."""
    names = (f"m{i}" for i in range(1000))
    found = [m for m in names if (int(digest(f"{name}/{m}.py"), 16) % 3 == 0) == held_out]
    return found[:count]


def test_held_out_rows_come_from_other_files_and_are_not_copies(two_libraries):
    for number, name in enumerate(("lib_one", "lib_two")):
        seen, unseen = files(False, name, 3), files(True, name, 2)
        base = 1000 * number
        contents = {module: [sentence(base + 100 * i + 20 * j) for j in range(3)] for i, module in enumerate(seen)}
        contents[unseen[0]] = [sentence(base + 600), sentence(base) + " changed", "both have this very text"]
        contents[unseen[1]] = [sentence(base + 700)]
        package(two_libraries, name, **contents)
    data = load_task(Settings("demo"))
    expected = {sentence(base + 600) for base in (0, 1000)} | {sentence(base + 700) for base in (0, 1000)}
    assert set(data.splits["validation"].first) == expected
    assert len(data.splits["train"]) == 18
    assert data.label_names == ("pytest", "ruff")


def test_a_package_without_sources_is_named(two_libraries):
    package(two_libraries, "lib_one", **{module: [sentence(9)] for module in files(False, "lib_one", 1)})
    package(two_libraries, "lib_two")
    with pytest.raises(DataError, match="fewer than 1 documentation strings for train in ruff"):
        load_task(Settings("demo"))


def test_the_demo_takes_no_other_data():
    with pytest.raises(DataError, match="takes no other data"):
        load_evaluation(Settings("demo"), "rows.csv", tuple(demo.LIBRARIES))
