"""GLUE from folders in the release's form, from the real release if available, and from the hub."""

import dataclasses

import pytest

from kasatune.data.tasks import load_evaluation, load_task
from kasatune.data.tasks.glue import GLUE
from kasatune.errors import DataError, WorkError
from tests.data.tasks.settings import Settings
from tests.shared_data import shared

QUOTE = 'He said "no'
RTE = "index\tsentence1\tsentence2\tlabel\n0\tA.\tB.\tnot_entailment\n1\tC.\tD.\tentailment\n"
MRPC = (
    "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    f"1\t10\t11\t{QUOTE}\tb\n0\t12\t13\tc\td\n1\t14\t15\te\tf\n0\t16\t17\tg\th\n"
)
MNLI_TRAIN = (
    "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse\t"
    "sentence1\tsentence2\tlabel1\tgold_label\n"
    "0\t1\t1n\tfiction\t(\t)\t(\t)\tp one\th one\tneutral\tcontradiction\n"
)
MNLI_DEV = (
    MNLI_TRAIN.split("\n")[0].replace("label1", "label1\tlabel2\tlabel3\tlabel4\tlabel5")
    + "\n0\t1\t1n\tfiction\t(\t)\t(\t)\tp\th\tneutral\ta\tb\tc\td\tentailment\n"
)


def folder(tmp_path, **files):
    for name, content in files.items():
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / (name.replace("__", ".") if "__" in name else f"{name}.tsv")).write_bytes(data)
    return str(tmp_path)


def load(name, data, **more):
    return load_task(Settings(f"glue/{name}", data=data, **more))


def test_pairs_with_words_as_labels(tmp_path):
    data = load("rte", folder(tmp_path, train=RTE, dev=RTE.replace("A.", "Z.")))
    assert data.label_names == ("entailment", "not_entailment")
    assert data.splits["train"].labels == [1, 0]
    assert data.splits["train"].texts() == [("A.", "B."), ("C.", "D.")]
    assert (data.primary, data.paper_metric, data.text_fields) == ("accuracy", "accuracy", 2)


def test_cola_has_no_header_and_no_quoting(tmp_path):
    rows = f"gj04\t1\t\t{QUOTE}\ngj04\t0\t*\tits last\n"
    data = load("cola", folder(tmp_path, train=rows, dev=rows))
    assert data.splits["train"].first == [QUOTE, "its last"]
    assert data.splits["train"].labels == [1, 0]
    assert data.label_names == ("unacceptable", "acceptable")


def test_stsb_scores(tmp_path):
    header = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
    row = "0\tg\tf\t2012\t1\ts\tt\tone\ttwo\t{}\n"
    data = load("stsb", folder(tmp_path, train=header + row.format("5.000"), dev=header + row.format("2.6")))
    assert data.splits["validation"].labels == [2.6]
    assert (data.kind, data.label_names, data.metric_names) == ("regression", None, ("pearson", "spearman"))
    with pytest.raises(DataError, match=r"row 1 \(line 2\), column 'score': '5.5'; expected a number from 0 to 5"):
        load("stsb", folder(tmp_path, train=header + row.format("5.5")))


def test_mnli_has_two_validation_sets(tmp_path):
    data = load("mnli", folder(tmp_path, train=MNLI_TRAIN, dev_matched=MNLI_DEV, dev_mismatched=MNLI_DEV * 1))
    assert list(data.splits) == ["train", "validation", "validation_mismatched"]
    assert data.splits["train"].labels == [2]
    assert data.splits["validation"].texts() == [("p", "h")]
    assert data.splits["validation_mismatched"].labels == [0]
    assert data.label_names == ("entailment", "neutral", "contradiction")
    with pytest.raises(DataError, match="column 'gold_label': '-'; expected entailment or neutral or contradiction"):
        load("mnli", folder(tmp_path, dev_matched=MNLI_DEV.replace("d\tentailment", "d\t-")))


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_mrpc_in_both_forms(tmp_path, mark):
    split, whole = tmp_path / "split", tmp_path / "whole"
    split.mkdir()
    whole.mkdir()
    lines = MRPC.splitlines(keepends=True)
    folder(split, train=mark + lines[0] + lines[1] + lines[3], dev=mark + lines[0] + lines[2] + lines[4])
    folder(whole, msr_paraphrase_train__txt=mark + MRPC.replace("\n", "\r\n"), dev_ids="12\t13\n16\t17\n")
    first, second = load("mrpc", str(split)), load("mrpc", str(whole))
    assert first.splits["train"].texts() == [(QUOTE, "b"), ("e", "f")]
    assert first.splits["validation"].labels == [0, 0]
    assert first.sha256 == second.sha256
    assert first.primary == first.paper_metric == "accuracy"
    (whole / "dev_ids.tsv").write_text("12\t13\n98\t99\n")
    with pytest.raises(DataError, match=r"2 pairs of ids, of which 1 are in msr_paraphrase_train.txt"):
        load("mrpc", str(whole))
    (whole / "dev_ids.tsv").unlink()
    with pytest.raises(DataError, match=r"needs dev_ids.tsv, which lists GLUE's development rows and is missing"):
        load("mrpc", str(whole))


def test_truncated_rows_of_qqp_are_skipped_and_counted(tmp_path):
    rows = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\ta\tb\t1\n4\t5\t6\thalf\n7\t8\t9\tc\td\t0\n"
    data = load("qqp", folder(tmp_path, train=rows, dev=rows.replace("4\t5\t6\thalf\n", "")))
    assert data.splits["train"].first == ["a", "c"]
    assert "train: 1 row of train.tsv left out, cut short in the release" in data.notes


def test_qnli_and_sst2_and_wnli(tmp_path):
    qnli = "index\tquestion\tsentence\tlabel\n0\tq?\ts.\tentailment\n"
    assert load("qnli", folder(tmp_path, train=qnli, dev=qnli)).splits["train"].labels == [0]
    sst2 = "sentence\tlabel\ngood film \t1\nbad\t0\n"
    data = load("sst2", folder(tmp_path, train=sst2, dev=sst2))
    assert (data.splits["train"].first[0], data.label_names) == ("good film ", ("negative", "positive"))
    wnli = "index\tsentence1\tsentence2\tlabel\n0\ta\tb\t1\n"
    data = load("wnli", folder(tmp_path, train=wnli, dev=wnli))
    assert (data.splits["train"].labels, data.label_names) == ([1], ("not_entailment", "entailment"))


def test_parent_folder_is_accepted(tmp_path):
    (tmp_path / "RTE").mkdir()
    folder(tmp_path / "RTE", train=RTE, dev=RTE)
    assert len(load("rte", str(tmp_path)).splits["train"]) == 2


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (RTE + "2\tE.\tF.\tmaybe\n", "row 3 (line 4), column 'label': 'maybe'; expected entailment or not_entailment"),
        (RTE + "2\tE.\tF.\n", "row 3 (line 4): 3 columns; 4 separated by tabs are expected: index, sentence1"),
        (RTE + "2\tE.\tF.\tG\tentailment\n", "row 3 (line 4): 5 columns"),
        (RTE.replace("sentence2", "sentense2"), "line 1: no column 'sentence2'; did you mean 'sentense2'?"),
        (RTE.splitlines()[0], "no rows"),
        (b"", "the file is empty"),
        ("\n\n", "no column 'sentence1'"),
        (RTE.encode().replace(b"A.", b"\xff."), "byte offset 34: 0xff is not UTF-8"),
    ],
)
def test_faults_of_files(tmp_path, content, expected):
    with pytest.raises(DataError) as caught:
        load("rte", folder(tmp_path, train=content, dev=RTE))
    assert str(tmp_path / "train.tsv") in str(caught.value)
    assert expected in str(caught.value)


def test_error_names_the_label_numbers(tmp_path):
    with pytest.raises(DataError, match=r"column 'label': '2'; expected 0 \(unacceptable\) or 1 \(acceptable\)"):
        load("cola", folder(tmp_path, train="a\t2\t\tb\n", dev="a\t1\t\tb\n"))


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(DataError, match=r"no dev.tsv; glue/rte needs train.tsv, dev.tsv"):
        load("rte", folder(tmp_path, train=RTE))
    with pytest.raises(DataError, match="no such folder"):
        load("rte", str(tmp_path / "none"))
    with pytest.raises(DataError, match="this is a file; name its folder"):
        load("rte", str(tmp_path / "train.tsv"))
    with pytest.raises(DataError, match=r"train.tsv, dev.tsv, or msr_paraphrase_train.txt and dev_ids.tsv"):
        load("mrpc", folder(tmp_path))


def test_development_rows_alone_can_be_read(tmp_path):
    data = load_evaluation(Settings("glue/rte"), folder(tmp_path, dev=RTE), ("entailment", "not_entailment"))
    assert {name: len(rows) for name, rows in data.splits.items()} == {"validation": 2}


@pytest.mark.parametrize(
    ("name", "path", "sizes", "share_of_ones"),
    [
        ("cola", "glue/CoLA", (8551, 1043), 0.7044),
        ("sst2", "glue/SST-2", (67349, 872), 0.5578),
        ("rte", "glue/RTE", (2490, 277), 0.4984),
        ("wnli", "glue/WNLI", (635, 71), 0.4913),
    ],
)
def test_the_release_itself(name, path, sizes, share_of_ones):
    data = load(name, str(shared(path)))
    assert (len(data.splits["train"]), len(data.splits["validation"])) == sizes
    labels = data.splits["train"].labels
    assert sum(labels) / len(labels) == pytest.approx(share_of_ones, abs=1e-4)


def test_quotation_marks_in_the_release_are_text():
    texts = load("rte", str(shared("glue/RTE"))).splits["train"].texts()
    lines = (shared("glue/RTE") / "train.tsv").read_text().splitlines()[1:]
    assert texts == [tuple(line.split("\t")[1:3]) for line in lines]
    assert sum('"' in first for first, _ in texts) > 100


@pytest.mark.parametrize("name", [name.partition("/")[2] for name in GLUE])
def test_from_the_hub(data_hub, name):
    task = GLUE[f"glue/{name}"]
    labels = [0.5, 1.5, 5.0] if name == "stsb" else [0, 1, 1]
    rows = [{**{column: f"{column} {i}" for column in task.hub_columns}, "label": labels[i]} for i in range(3)]
    splits = ["train", "validation", "test"]
    if name == "mnli":
        splits = ["train", "validation_matched", "validation_mismatched", "test_matched", "test_mismatched"]
    commit = data_hub.put_splits("nyu-mll/glue", dict.fromkeys(splits, rows), config=name)
    data = load(name, None, max_eval=2)
    assert data.source == f"nyu-mll/glue@{commit}" and data.pins == {"revision": commit}
    expected = {"train": 3, "validation": 2} | ({"validation_mismatched": 2} if name == "mnli" else {})
    assert {split: len(rows) for split, rows in data.splits.items()} == expected
    assert data.splits["train"].texts()[2] == tuple(f"{column} 2" for column in task.hub_columns)
    assert data.splits["train"].labels == labels


def test_hub_and_release_give_equal_checksums(data_hub, tmp_path):
    rows = [{"sentence1": "A.", "sentence2": "B.", "label": 1}, {"sentence1": "C.", "sentence2": "D.", "label": 0}]
    data_hub.put_splits("nyu-mll/glue", {"train": rows, "validation": rows}, config="rte")
    assert load("rte", None).sha256 == load("rte", folder(tmp_path, train=RTE, dev=RTE)).sha256


def test_unreachable_hub_is_a_work_error(data_hub, no_network):
    with pytest.raises(
        WorkError, match=r"nyu-mll/glue could not be read: ConnectionError: .*give a folder of the GLUE"
    ):
        load("rte", None)


def test_task_data_is_frozen(tmp_path):
    data = load("rte", folder(tmp_path, train=RTE, dev=RTE))
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.name = "other"
