"""Read documents for retrieval: .txt, .md, .jsonl and .pdf files, folders of them, and documentation of packages."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from kasatune.data.readers.faults import show
from kasatune.data.readers.tables import column_names, read_table
from kasatune.data.readers.text_files import MAX_FILE_BYTES, read_text, require_file
from kasatune.data.retrieval.package_documentation import PACKAGE, documented_objects
from kasatune.errors import DataError, MissingExtraError
from kasatune.wording import agree, counted

SUFFIXES = (".txt", ".md", ".jsonl", ".pdf")
_SHOWN = 5


@dataclass(frozen=True)
class Document:
    """A document of a corpus.

    Attributes:
        name: unique in the corpus: the path of its file, with the `id` or number of a row; or the name of a documented
            object such as "json.dumps".
        text: what is cut into chunks.
    """

    name: str
    text: str


def read_documents(sources: Sequence[str]) -> tuple[list[Document], list[str]]:
    """The documents of a corpus, each text once, and notes about what was left out.

    Args:
        sources: files, folders (searched recursively for `SUFFIXES`), and package:MODULE for the documentation of the
            public functions, classes and methods of an importable module. A .jsonl file holds one document a row, in
            the column `text`, with its name in the column `id` if there is one.

    Raises:
        DataError: a source is missing, unreadable or of another kind, two documents have one name, or no document has
            text.
        MissingExtraError: a PDF is read without pypdf.
    """
    documents: list[Document] = []
    empty: list[str] = []
    repeated: list[str] = []
    names: set[str] = set()
    texts: set[str] = set()
    for document in (document for source in sources for document in _read(source)):
        if document.name in names:
            raise DataError(f"{document.name}: two documents of the corpus have this name; give each its own `id`")
        names.add(document.name)
        digest = hashlib.sha256(" ".join(document.text.split()).encode()).hexdigest()
        if not document.text.strip():
            empty.append(document.name)
        elif digest in texts:
            repeated.append(document.name)
        else:
            texts.add(digest)
            documents.append(document)
    if not documents:
        listed = ", ".join(map(show, sources))
        why = f"none of {counted(len(empty), 'document')} has text ({_listed(empty)})" if empty else "no documents"
        remedy = "; recognize the text of scanned pages first" if any(".pdf" in name for name in empty) else ""
        raise DataError(f"corpus {listed}: {why}; give files with text{remedy}")
    notes = []
    if empty:
        notes.append(f"corpus: {counted(len(empty), 'document')} without text left out ({_listed(empty)})")
    if repeated:
        verb = agree(len(repeated), "repeats", "repeat")
        notes.append(
            f"corpus: {counted(len(repeated), 'document')} that {verb} the text of another left out"
            f" ({_listed(repeated)})"
        )
    return documents, notes


def _read(source: str) -> Iterator[Document]:
    if source.startswith(PACKAGE):
        yield from (Document(item.name, item.text) for item in documented_objects(source.removeprefix(PACKAGE)))
        return
    path = Path(source).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        if not files:
            raise DataError(
                f"{path}: the folder has no file that ends in {', '.join(SUFFIXES)}; give one with documents"
            )
        for file in files:
            if file.stat().st_size:
                yield from _read_file(file)
            else:
                yield Document(str(file), "")
        return
    require_file(path)
    yield from _read_file(path)


def _read_file(path: Path) -> Iterator[Document]:
    suffix = path.suffix.lower()
    if suffix == ".pdf":
        yield Document(str(path), _pdf_text(path))
    elif suffix == ".jsonl":
        yield from _rows(path)
    elif suffix in SUFFIXES:
        yield Document(str(path), read_text(path, MAX_FILE_BYTES))
    else:
        raise DataError(f"{path}: the suffix {suffix!r} is none of {', '.join(SUFFIXES)}; convert the document")


def _rows(path: Path) -> Iterator[Document]:
    named = "id" in column_names(path)
    table = read_table(path, ["text", "id"] if named else ["text"])
    for index, text in enumerate(table.columns["text"]):
        name = table.columns["id"][index] if named else f"{path}#{index + 1}"
        if not isinstance(text, str | None):
            raise DataError(f"{path}, {table.place(index, 'text')}: {show(text)} is not text")
        if isinstance(name, bool) or not isinstance(name, str | int) or name == "":
            raise DataError(f"{path}, {table.place(index, 'id')}: {show(name)} received; must be text or a number")
        yield Document(str(name), text or "")


def _pdf_text(path: Path) -> str:
    if find_spec("pypdf") is None:
        raise MissingExtraError("reading .pdf documents", "rag", ["pypdf"])
    from pypdf import PdfReader

    try:
        reader = PdfReader(path)
        if reader.is_encrypted and not reader.decrypt(""):
            raise DataError(f"{path}: the PDF needs a password; save it without one")
        text = "\n\n".join(page.extract_text() for page in reader.pages)
        return text.encode("utf-8", "replace").decode("utf-8")  # fonts may map to halves of surrogate pairs
    except DataError:
        raise
    except Exception as fault:  # pypdf raises dozens of unrelated types for damaged files
        reason = (str(fault).strip().splitlines() or [type(fault).__name__])[0]
        raise DataError(f"{path}: not a readable PDF ({reason}); save it again") from fault


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:_SHOWN])}{', ...' if names[_SHOWN:] else ''}"
