"""The user's labelled text: accepted forms, and errors with row and column."""

import json

import pytest

from kasatune.data.tasks import labelled_text as own
from kasatune.data.tasks import load_evaluation, load_task
from kasatune.errors import DataError
from tests.data.tasks.settings import Settings

TRAIN = "text,label\n" + "".join(f"text {i},{'yes' if i % 3 else 'no'}\n" for i in range(12))
EVAL = "text,label\nnew one,no\nnew two,yes\n"


@pytest.fixture
def load(tmp_path):
    def run(train=TRAIN, validation=EVAL, ending=".csv", name="classification", text="text", label="label", **more):
        (tmp_path / f"train{ending}").write_bytes(train if isinstance(train, bytes) else train.encode())
        if isinstance(validation, str) and "\n" in validation:
            (tmp_path / f"eval{ending}").write_text(validation)
            validation = str(tmp_path / f"eval{ending}")
        train = str(tmp_path / f"train{ending}")
        return load_task(Settings(name, train=train, validation=validation, text=text, label=label, **more))

    return run


def test_words_become_numbers_in_sorted_order(load):
    data = load()
    assert data.label_names == ("no", "yes")
    assert data.splits["train"].first[:2] == ["text 0", "text 1"]
    assert data.splits["train"].labels[:4] == [0, 1, 1, 0]
    assert data.splits["validation"].labels == [0, 1]
    assert (data.kind, data.text_fields, data.primary) == ("classification", 1, "accuracy")
    assert data.metric_names == ("accuracy", "f1", "matthews_correlation")


def test_whole_numbers_are_sorted_by_value(load):
    data = load("text,label\na,10\nb,9\nc,-1\n", "text,label\nd,9\n")
    assert data.label_names == ("-1", "9", "10")
    assert data.splits["validation"].labels == [1]
    assert "validation: no row with the label '-1', '10'" in data.notes


def test_labels_of_many_digits_are_words(load):
    data = load(f"text,label\na,{'1' * 5000}\nb,2\n", "text,label\nc,2\n")
    assert data.label_names == ("1" * 5000, "2")


def test_nearest_labels_are_computed_only_for_listed_faults(load, monkeypatch):
    sought = []
    monkeypatch.setattr(own, "nearest", lambda word, known: sought.append(word) or "")
    with pytest.raises(DataError, match="2,000 faults"):
        load(validation="text,label\n" + "".join(f"t,name {i}\n" for i in range(2000)))
    assert sought == [f"name {i}" for i in range(5)]


@pytest.mark.parametrize("values", [[1, 0], [1.0, 0.0], ["1", "0"], [" 1", "0 "]])
def test_equal_labels_of_different_types_have_the_same_name(load, values):
    rows = json.dumps([{"text": f"t{i}", "label": values[i % 2]} for i in range(4)])
    data = load(rows, json.dumps([{"text": "x", "label": "1"}], indent=1), ".json")
    assert data.label_names == ("0", "1")
    assert data.splits["train"].labels == [1, 0, 1, 0]


def test_pairs(load):
    data = load("a,b,label\np,q,x\nr,s,y\n", "a,b,label\nt,u,x\n", text=("a", "b"))
    assert (data.splits["train"].first, data.splits["train"].second) == (["p", "r"], ["q", "s"])
    assert data.text_fields == 2


def test_numbers(load):
    data = load("text,label\na,1e-1\nb,-2\nc, 3.5\n", "text,label\nd,0\n", name="regression")
    assert data.splits["train"].labels == [0.1, -2.0, 3.5]
    assert (data.label_names, data.kind, data.metric_names) == (None, "regression", ("pearson", "spearman"))


def test_limits_use_the_first_rows_and_are_reported(load):
    data = load(max_train=5, max_eval=99)
    assert data.splits["train"].first == [f"text {i}" for i in range(5)]
    assert "train: the first 5 of 12 rows (max_train)" in data.notes
    assert "validation: max_eval is 99 and all 2 rows are used" in data.notes


def test_label_names_do_not_depend_on_the_limit(load):
    data = load("text,label\na,no\nb,yes\nc,yes\n", max_train=1)
    assert data.label_names == ("no", "yes")
    assert "train: no row with the label 'yes'" in data.notes


def test_checksum_depends_on_the_rows_alone(load):
    first = load()
    assert len(first.sha256) == 64
    assert load(TRAIN.replace(",yes\n", ", yes\r\n")).sha256 == first.sha256
    assert load(TRAIN.replace("text 3", "text three")).sha256 != first.sha256
    assert load(max_train=5).sha256 != first.sha256


def test_share_is_held_out_for_validation(load):
    rows = "text,label\n" + "".join(f"text {i},{i // 50}\n" for i in range(100))
    data, again = load(rows, 0.2), load(rows, "0.2")
    train, validation = data.splits["train"], data.splits["validation"]
    assert (len(train), len(validation)) == (80, 20)
    assert not set(train.first) & set(validation.first)
    assert {0, 1} == set(validation.labels)
    numbers = [int(text.split()[1]) for text in train.first]
    assert numbers == sorted(numbers)
    assert data.sha256 == again.sha256
    assert any("20 of 100 rows" in note for note in data.notes)


@pytest.mark.parametrize("share", [0, 1, 1.5, -0.1, "nan"])
def test_shares_out_of_range(load, share):
    with pytest.raises(DataError, match="share must lie between 0 and 1"):
        load(validation=share)


def test_a_share_of_too_few_rows(load):
    with pytest.raises(DataError, match="leaves a part empty"):
        load("text,label\na,1\nb,2\n", 0.1)


def test_overlap_with_training_texts_is_reported(load):
    data = load(validation="text,label\ntext 3,no\nnew,yes\n")
    assert "validation: 1 of 2 rows has the text of a training row" in data.notes


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ("text,label\na,x\n  ,y\n", "train.csv, row 2 (line 3), column 'text': the text is empty"),
        ("text,label\na,x\nb,\nc,y\n", "train.csv, row 2 (line 3), column 'label': the label is missing"),
        ("text,label\na,x\nb,x\n", "every row has the label 'x'; at least two labels are needed"),
        ("text,label\n" + "".join(f"t,{i}a\n" for i in range(1001)), "1,001 different labels in 1,001 rows"),
    ],
)
def test_faults_of_training_rows(load, train, expected):
    with pytest.raises(DataError) as caught:
        load(train)
    assert expected in str(caught.value)


def test_validation_label_unknown_in_training_is_refused(load):
    with pytest.raises(DataError) as caught:
        load(validation="text,label\na,Yes\nb,maybe\n")
    message = str(caught.value)
    assert "2 faults" in message
    assert "eval.csv" in message
    assert "row 1 (line 2), column 'label': the label 'Yes' does not occur in" in message
    assert "did you mean 'yes'? (labels: no, yes)" in message


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("high", "'high' is not a finite number"),
        ("1.5x", "'1.5x' is not a finite number"),
        ("nan", "'nan' is not a finite number"),
        ("inf", "'inf' is not a finite number"),
        ("", "the number is missing"),
    ],
)
def test_faults_of_numbers(load, value, expected):
    with pytest.raises(DataError) as caught:
        load(f"text,label\na,1\nb,{value}\n", name="regression")
    assert f"row 2 (line 3), column 'label': {expected}" in str(caught.value)


def test_numbers_that_are_all_equal(load):
    with pytest.raises(DataError, match="every row has the number 3"):
        load("text,label\na,3\nb,3.0\n", name="regression")


@pytest.mark.parametrize(
    ("value", "expected"),
    [(5, "5 is not text"), (None, "no text"), (["a"], "['a'] is not text"), ("a\0", "a NUL"), ("\ud800", "surrogate")],
)
def test_values_that_are_not_text_are_refused(load, value, expected):
    rows = [{"text": "a", "label": 1}, {"text": value, "label": 2}]
    with pytest.raises(DataError) as caught:
        load(json.dumps(rows), ending=".json")
    assert "row 2, column 'text': " in str(caught.value)
    assert expected in str(caught.value)


def test_labels_that_are_not_words_are_refused(load):
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": 2}, {"text": "c", "label": {"x": 1}}]
    with pytest.raises(DataError, match=r"row 3, column 'label': \{'x': 1\} is not a label"):
        load(json.dumps(rows), ending=".json")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"train": None}, "task.train: missing"),
        ({"validation": None}, "task.validation: missing; give a file, or the share"),
        ({"text": None}, "task.text: missing"),
        ({"label": None}, "task.label: missing"),
        ({"label": "text"}, "they must be different columns"),
        ({"text": ("a", "a")}, "they must be different columns"),
        ({"text": ("a", "b", "c")}, "one or two columns"),
    ],
)
def test_incomplete_settings_are_refused(change, expected):
    settings = {"train": "a.csv", "validation": "b.csv", "text": "text", "label": "label"} | change
    with pytest.raises(DataError) as caught:
        load_task(Settings("classification", **settings))
    assert expected in str(caught.value)


def test_another_file_is_read_with_the_labels_of_training(tmp_path):
    (tmp_path / "more.csv").write_text("text,label\na,yes\nb,yes\nc,no\n")
    settings = Settings(
        "classification", train="gone.csv", validation="gone.csv", text="text", label="label", max_eval=2
    )
    data = load_evaluation(settings, tmp_path / "more.csv", ("maybe", "no", "yes"))
    assert list(data.splits) == ["validation"]
    assert data.splits["validation"].labels == [2, 2]
    with pytest.raises(DataError, match=r"'no' does not occur in gone.csv"):
        load_evaluation(settings, tmp_path / "more.csv", ("maybe", "yes"))


def test_unknown_tasks_name_the_nearest():
    with pytest.raises(DataError, match="'glue/sst-2' is not a task; did you mean 'glue/sst2'"):
        load_task(Settings("glue/sst-2"))


def test_a_whole_number_with_and_without_decimals_is_one_class(load):
    rows = [{"text": f"t{i}", "label": label} for i, label in enumerate([1, 1.0, "1.00", " 1", 0, "0.0", 2.5, "2.50"])]
    data = load(
        json.dumps(rows), json.dumps([{"text": "x", "label": "1.0"}, {"text": "y", "label": 0}], indent=1), ".json"
    )
    assert data.label_names == ("0", "1", "2.5")
    assert data.splits["train"].labels == [1, 1, 1, 1, 0, 0, 2, 2]
    assert data.splits["validation"].labels == [1, 0]
    assert any("'1' and '1.00' are one label" in note for note in data.notes)
    floats = load("text,label\na,1.0\nb,0.0\n", "text,label\nc,1\n")  # as pandas writes a column with a gap
    assert (floats.label_names, floats.splits["validation"].labels) == (("0.0", "1.0"), [1])


def test_unicode_forms_of_a_word_are_one_class_and_both_are_named(load):
    data = load("text,label\na,caf\u00e9\nb,cafe\u0301\nc,tea\n", "text,label\nd,cafe\u0301\ne,caf\u00e9\n")
    assert data.label_names == ("caf\u00e9", "tea")
    assert data.splits["train"].labels == [0, 0, 1]
    assert data.splits["validation"].labels == [0, 0]
    assert any(r"'cafe\u0301' and 'caf\xe9' are one label" in note for note in data.notes)


def test_names_of_a_class_label_are_kept_in_their_order(load, tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neutral", "bad", "good"])}
    )
    path = tmp_path / "part.parquet"
    datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [2, 0, 1]}, features=features).to_parquet(path)
    data = load(path.read_bytes(), str(path), ".parquet")
    assert data.label_names == ("neutral", "bad", "good")
    assert data.splits["train"].labels == data.splits["validation"].labels == [2, 0, 1]
    # The labels of a model that was trained on the numbers of such a column.
    settings = Settings("classification", train=str(path), validation=str(path), text="text", label="label")
    assert load_evaluation(settings, path, ("0", "1", "2")).splits["validation"].labels == [2, 0, 1]
    datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [-1, 0, 1]}, features=features).to_parquet(path)
    with pytest.raises(DataError, match="-1 is not a label"):
        load(path.read_bytes(), str(path), ".parquet")
