"""How the files of bad inputs are made, so that large and odd ones are described and not stored."""

from __future__ import annotations

import csv
import gzip
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

_BLOCK = 1 << 20


def make(path: Path, content: Any) -> None:
    """Put `content` at `path`: text, or {make: how, ...} with the arguments of a function below."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    else:
        how = dict(content)
        _MAKERS[how.pop("make")](path, **how)


def _repeat(path: Path, unit: str, times: int, before: str = "", after: str = "") -> None:
    whole, rest = divmod(times, max(1, _BLOCK // len(unit)))
    block = unit * max(1, _BLOCK // len(unit))
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(before)
        for _ in range(whole):
            file.write(block)
        file.write(unit * rest + after)


def _raw(path: Path, text: str) -> None:
    """Each character a byte."""
    path.write_bytes(text.encode("latin-1"))


def _encoded(path: Path, text: str, encoding: str) -> None:
    path.write_bytes(text.encode(encoding))


def _zeros(path: Path, bytes: int) -> None:
    """A file of NUL bytes that takes no room on the disk."""
    with path.open("wb") as file:
        file.truncate(bytes)


def _gzip(path: Path, text: str) -> None:
    path.write_bytes(gzip.compress(text.encode()))


def _parquet(path: Path, columns: dict[str, list[Any]], cut: int | None = None) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    if cut is not None:
        _cut(path, cut)


def _columns(path: Path, number: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for kind in ("c", "v"):
            file.write(",".join(f"{kind}{index}" for index in range(number)) + "\n")


def _object(path: Path, number: int) -> None:
    path.write_text(json.dumps({f"c{index}": index for index in range(number)}), encoding="utf-8")


def _labels(path: Path, times: int) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *((f"text {n}", f"label {n}") for n in range(times))])


def _keys(path: Path, times: int) -> None:
    path.write_text("".join(f"k{number}: 1\n" for number in range(times)), encoding="utf-8")


def _laughs(path: Path, levels: int) -> None:
    lines = ['a0: &a0 ["ha","ha","ha","ha","ha","ha","ha","ha","ha"]']
    lines += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels + 1)]
    path.write_text("\n".join(lines), encoding="utf-8")


def _cut(path: Path, keep: int) -> None:
    """Keep the first bytes; below zero, all but the last."""
    path.write_bytes(path.read_bytes()[:keep])


def _gone(path: Path) -> None:
    path.unlink(missing_ok=True)


def _pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def _link(path: Path, to: str) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(to)


def _folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


class _Writes:
    """Writes a file when it is unpickled: what a hostile pickle could do."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (Path.write_text, (Path("written"), "by a pickle"))


def _pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(_Writes()))


def _json(path: Path, set: dict[str, Any] | None = None, drop: list[str] | None = None) -> None:
    """The object that is there, with some keys changed and some taken out."""
    values = {**json.loads(path.read_text(encoding="utf-8")), **(set or {})}
    path.write_text(json.dumps({key: one for key, one in values.items() if key not in (drop or ())}), encoding="utf-8")


def _words(path: Path) -> None:
    """A common word has a number beyond the rows of the model."""
    values = json.loads(path.read_text(encoding="utf-8"))
    values["model"]["vocab"]["good"] = 50
    path.write_text(json.dumps(values), encoding="utf-8")


def _tensors(path: Path, op: str, key: str, to: str = "") -> None:
    """The safetensors file that is there, its tensors whose names hold `key` spoilt."""
    import torch
    from safetensors.torch import load_file, save_file

    change = {
        "nan": lambda tensor: torch.full_like(tensor, float("nan")),
        "inf": lambda tensor: torch.full_like(tensor, float("inf")),
        "widen": lambda tensor: torch.cat([tensor, tensor]),
        "flat": lambda tensor: tensor.flatten(),
        "int": lambda tensor: tensor.to(torch.int32),
        "empty": lambda tensor: tensor[:0],
    }
    tensors = load_file(path)
    for name in [name for name in tensors if key in name]:
        tensor = tensors.pop(name)
        if op == "rename":
            tensors[name.replace(key, to)] = tensor
        elif op in change:
            tensors[name] = change[op](tensor)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


_MAKERS: dict[str, Callable[..., None]] = {
    "repeat": _repeat,
    "raw": _raw,
    "encoded": _encoded,
    "zeros": _zeros,
    "gzip": _gzip,
    "parquet": _parquet,
    "columns": _columns,
    "object": _object,
    "labels": _labels,
    "keys": _keys,
    "laughs": _laughs,
    "cut": _cut,
    "gone": _gone,
    "pipe": _pipe,
    "link": _link,
    "folder": _folder,
    "pickle": _pickle,
    "json": _json,
    "words": _words,
    "tensors": _tensors,
}
