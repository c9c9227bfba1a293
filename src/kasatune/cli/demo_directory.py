"""The output directory of `kasatune demo`: a marker file lists what a demo wrote, and only that is replaced."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from kasatune.errors import OutputError
from kasatune.io.atomic import remove

_MARKER = ".kasatune-demo.json"


def check_replaceable(out: Path) -> None:
    """Check that `out` is free, or holds the result of an earlier demo.

    Raises:
        OutputError: `out` holds something else, or is not a directory.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise OutputError(f"{out} is not a plain directory; choose another one with --out")
    if out.is_dir() and any(out.iterdir()) and not _written(out):
        raise OutputError(f"{out} holds something that no demo wrote; choose another directory with --out")


def replace(out: Path, finished: Path, *, later: Sequence[str] = ()) -> None:
    """Move the content of `finished` into `out` in place of what an earlier demo wrote; the rest of `out` stays.

    Args:
        out: the demo's directory.
        finished: the directory that the new demo wrote.
        later: names that the demo will write afterwards.

    Raises:
        OutputError: `out` holds an entry of the same name that no demo wrote; `out` is unchanged.
    """
    out.mkdir(parents=True, exist_ok=True)
    names = sorted(entry.name for entry in finished.iterdir())
    entries, before = [*names, *later], _written(out)
    in_the_way = [name for name in entries if name not in before and (out / name).exists()]
    if in_the_way:
        raise OutputError(f"{out} holds {', '.join(in_the_way)}, which no demo wrote; choose another --out")
    for name in before:
        remove(out / name)
    marker = finished / _MARKER
    marker.write_text(json.dumps({"written_by": "kasatune demo", "entries": entries}, indent=2), encoding="utf-8")
    marker.replace(out / _MARKER)
    for name in names:
        (finished / name).rename(out / name)


def _written(out: Path) -> list[str]:
    """The entries of `out` that its marker lists; empty without a readable marker."""
    try:
        marker = json.loads((out / _MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    entries = marker.get("entries") if isinstance(marker, dict) else None
    return [name for name in entries if _is_entry(name)] if isinstance(entries, list) else []


def _is_entry(name: object) -> bool:
    """Whether `name` is a plain file name, without any path: the marker may have been edited."""
    return isinstance(name, str) and name not in ("", ".", "..") and name == Path(name).name and "\0" not in name
