"""Table files in five formats give the same columns, and every fault names its place."""

import csv
import json
import os
import tracemalloc

import pyarrow
import pyarrow.parquet
import pytest

from kasatune.data.readers import tables, text_files
from kasatune.data.readers.tables import column_names, read_table
from kasatune.errors import DataError

TEXTS = ['plain "inner" quote', "comma, tab\t and\nline end", "ünïcode 日本語 🙂", " spaces kept "]
LABELS = ["a", "b", "a", "b"]


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refusal(path, content, columns=("text", "label")):
    with pytest.raises(DataError) as caught:
        read_table(write(path, content), columns)
    message = str(caught.value)
    assert str(path) in message
    return message


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".json", ".jsonl", ".parquet", ".CSV"])
def test_every_format_gives_the_same_columns(tmp_path, ending):
    path = tmp_path / f"rows{ending}"
    rows = [{"label": label, "other": "x", "text": text} for text, label in zip(TEXTS, LABELS, strict=True)]
    if ending == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif ending == ".json":
        write(path, json.dumps(rows))
    elif ending == ".jsonl":
        write(path, "\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    else:
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, ["label", "other", "text"], delimiter="\t" if ending == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    table = read_table(path, ["text", "label"])
    assert table.columns == {"text": TEXTS, "label": LABELS}
    assert len(table) == 4


def test_places_count_rows_and_lines(tmp_path):
    table = read_table(write(tmp_path / "a.csv", '\ntext,label\n"two\nlines",1\n\nb,2\n'), ["text"])
    assert table.columns["text"] == ["two\nlines", "b"]
    assert table.place(0, "text") == "row 1 (line 3), column 'text'"
    assert table.place(1, "text") == "row 2 (line 6), column 'text'"


def test_long_values_are_read_and_csv_field_size_limit_is_restored(tmp_path):
    csv.field_size_limit(131_072)  # its default
    long = "x" * 1_000_000
    assert read_table(write(tmp_path / "a.csv", f"text\n{long}\n"), ["text"]).columns["text"] == [long]
    assert csv.field_size_limit() == 131_072


def test_missing_column_error_names_the_nearest_and_all_columns(tmp_path):
    message = refusal(tmp_path / "a.csv", "Text,lable\na,b\n")
    assert "no column 'text'; did you mean 'Text'? (columns: 'Text', 'lable')" in message
    assert "did you mean 'sentence'" in refusal(tmp_path / "a.jsonl", '{"sentence": "a"}\n', ["sentense"])
    assert "values seem to be separated by ';'" in refusal(tmp_path / "a.tsv", "text;label\na;b\n")


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_the_header_of_a_csv_file_shows_what_separates_its_columns(tmp_path, mark, quoting):
    path = tmp_path / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write("\n")
        csv.writer(file, delimiter=mark, quoting=quoting).writerows([["text", "label"], ["a, b; c | d\te", "1"]])
    assert column_names(path) == ["text", "label"]
    assert read_table(path, ["label", "text"]).columns == {"label": ["1"], "text": ["a, b; c | d\te"]}


def test_a_comma_separates_before_other_marks_and_a_quoted_name_may_hold_any(tmp_path):
    assert column_names(write(tmp_path / "a.csv", "a;b;c,d\n1,2\n")) == ["a;b;c", "d"]
    assert column_names(write(tmp_path / "b.csv", '"a;b"\n1\n')) == ["a;b"]
    assert column_names(write(tmp_path / "c.csv", "text\na;b\n")) == ["text"]


def test_duplicate_column_is_refused(tmp_path):
    assert "the column 'label' occurs 2 times (columns 2, 3)" in refusal(
        tmp_path / "a.csv", "text,label,label\na,b,c\n"
    )
    assert read_table(write(tmp_path / "a.csv", "text,x,x\na,b,c\n"), ["text"]).columns == {"text": ["a"]}
    assert "the key 'text' twice" in refusal(tmp_path / "a.jsonl", '{"text": 1, "text": 2, "label": 3}\n')


def test_ragged_rows_are_counted(tmp_path):
    content = "text,label\n" + "a,b\n" + "a\n" * 7 + "a,b,c\n"
    message = refusal(tmp_path / "a.csv", content)
    assert "8 faults" in message
    assert "row 2 (line 3): 1 column where the header has 2" in message
    assert "and 3 more" in message


def test_unclosed_quotes_are_refused(tmp_path):
    message = refusal(tmp_path / "a.csv", 'text,label\na,b\n"open,b\nc,d\n')
    assert "line 3: a quoted value that begins in the row of line 3 is not closed" in message
    assert "line 2" in refusal(tmp_path / "a.csv", 'text,label\n"a"b,c\n')


def test_carriage_return_line_ends_are_refused(tmp_path):
    assert "carriage return alone" in refusal(tmp_path / "a.csv", "text,label\ra,b\r")


STARTS = {".csv": b"text,label\n", ".tsv": b"text\tlabel\n", ".json": b"[\n", ".jsonl": b'{"text": "a"}\n'}


@pytest.mark.parametrize("ending", list(STARTS))
def test_other_encodings_name_the_byte(tmp_path, ending):
    path, start = tmp_path / f"a{ending}", STARTS[ending]
    message = refusal(path, start + b"abc\xe9\n")
    assert f"line 2, byte offset {len(start) + 3}: 0xe9 is not UTF-8" in message
    assert "it looks like UTF-16" in refusal(path, start.decode().encode("utf-16"))
    assert "a gzip archive" in refusal(path, b"\x1f\x8b\x08\x00rest")


@pytest.mark.parametrize("ending", list(STARTS))
def test_nul_bytes_name_the_byte(tmp_path, ending):
    start = b"\xef\xbb\xbf" + STARTS[ending]
    message = refusal(tmp_path / f"a{ending}", start + "é\0\n".encode())
    assert f"line 2, byte offset {len(start) + 2}: a NUL byte" in message


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".json", ".jsonl", ".parquet"])
def test_empty_files(tmp_path, ending):
    assert "the file is empty" in refusal(tmp_path / f"a{ending}", b"")


def test_files_without_rows(tmp_path):
    assert "no rows" in refusal(tmp_path / "a.csv", "text,label\n")
    assert "no rows" in refusal(tmp_path / "a.json", "[]")
    assert "no column 'text'" in refusal(tmp_path / "a.csv", "\n\n")


def test_json_other_than_a_list_of_objects_is_refused(tmp_path):
    assert "one object where a list of objects" in refusal(tmp_path / "a.json", '{"text": ["a"]}')
    assert "row 2: 'b' where an object" in refusal(tmp_path / "a.json", '[{"text": "a", "label": 1}, "b"]')
    assert "line 2: [1] where an object" in refusal(tmp_path / "a.jsonl", '{"text": "a", "label": 1}\n[1]\n')
    assert "line 2, column 2: not JSON" in refusal(tmp_path / "a.jsonl", '{"text": "a", "label": 1}\n{text}\n')
    assert "line 1, column 11: not JSON" in refusal(tmp_path / "a.json", '[{"text": ')
    assert "nested too deeply" in refusal(tmp_path / "a.json", "[" * 200_000)
    assert "a.jsonl" in refusal(tmp_path / "a.jsonl", '{"text": ' + "1" * 10_000 + "}\n")


def test_absent_json_keys_are_missing_values(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "a"}\n\n{"text": "b", "label": 1}\n')
    assert read_table(path, ["text", "label"]).columns == {"text": ["a", "b"], "label": [None, 1]}


def test_parquet_cut_short(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS * 1000, "label": LABELS * 1000}), path)
    whole = path.read_bytes()
    assert len(read_table(path, ["text"])) == 4000
    for cut in (3, len(whole) // 2, len(whole) - 1):
        assert "not a complete Parquet file" in refusal(path, whole[:cut])
    spoilt = bytearray(whole)
    spoilt[4:200] = os.urandom(196)
    assert "not a complete Parquet file" in refusal(path, bytes(spoilt))
    assert "no column 'text'; did you mean 'texts'" in refusal_of_parquet(path, {"texts": ["a"]})


def refusal_of_parquet(path, columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return refusal(path, path.read_bytes())


def test_parquet_above_the_unpacked_limit_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["x" * 1000] * 5000}), path, use_dictionary=False)
    monkeypatch.setattr(tables, "MAX_FILE_BYTES", 1_000_000)
    assert path.stat().st_size < 1_000_000
    assert "once unpacked" in refusal(path, path.read_bytes(), ["text"])


def test_paths_other_than_regular_files_are_refused(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_table(tmp_path / "none.csv", ["text"])
    with pytest.raises(DataError, match="File name too long"):
        read_table(tmp_path / ("long" * 100 + ".csv"), ["text"])
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match="this is a folder"):
        read_table(tmp_path / "folder.csv", ["text"])
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(DataError, match="not a regular file"):
        read_table(tmp_path / "pipe.csv", ["text"])
    with pytest.raises(DataError, match=r"the suffix '.xlsx' is none of .csv, .tsv, .json, .jsonl, .parquet"):
        read_table(write(tmp_path / "a.xlsx", "x"), ["text"])


def test_files_over_the_size_limit_are_refused(tmp_path):
    path = tmp_path / "a.csv"
    with path.open("wb") as file:
        file.truncate(text_files.MAX_FILE_BYTES + 1)
    with pytest.raises(DataError, match="2,048 MiB; the limit is 2,048 MiB"):
        read_table(path, ["text"])
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(tables.MAX_JSON_BYTES + 1)
    with pytest.raises(DataError, match="the limit is 256 MiB"):
        read_table(tmp_path / "a.json", ["text"])


def test_line_of_100_megabytes_is_refused_without_reading_it_completely(tmp_path):
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.truncate(100_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="line 1: over 10 MiB"):
            read_table(path, ["text"])
        assert tracemalloc.get_traced_memory()[1] < 40_000_000
    finally:
        tracemalloc.stop()
