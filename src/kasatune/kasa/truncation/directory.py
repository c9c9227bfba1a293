"""The directory that `kasatune decompose` writes: tails of a whole checkpoint, and an index of them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from kasatune.errors import InputError, ModelError
from kasatune.kasa.truncation.files import ALGORITHM, TailKey, read_tail
from kasatune.linalg import TailSVD

INDEX = "index.json"
TAILS = "tails"
FORMAT = "kasatune tails"


class TailDirectory:
    """Tails of a checkpoint, found by the values of a weight, whatever the model calls it.

    Args:
        folder: that `kasatune decompose` wrote.

    Raises:
        InputError: it holds no finished index, or one of another version.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index = read_index(folder)
        self._dropped = {layer["weight"]: layer["dropped"] for layer in self.index["layers"].values()}

    def get(self, key: TailKey, name: str) -> TailSVD | None:
        """The tail of a weight, cut from a longer one where fewer triplets are wanted; None where its file is damaged.

        Raises:
            ModelError: the weight is none of those that were decomposed, or too few of its triplets are there.
        """
        there = self._dropped.get(key.digest)
        if there is None or there < key.dropped:
            raise ModelError(f"tails: {self._complaint(key, name, there)}")
        try:
            longest = TailKey(key.digest, key.shape, there)
            tail = read_tail(self.folder / TAILS / longest.filename, longest)
            if tail is None:
                raise ModelError(f"{self.folder / TAILS / longest.filename} is missing")
        except ModelError as fault:
            warnings.warn(f"the tail of {name} is computed again: {fault}", stacklevel=2)
            return None
        first = there - key.dropped
        return TailSVD(*(t.contiguous() for t in (tail.U[:, first:], tail.S[first:], tail.Vh[first:])))

    def _complaint(self, key: TailKey, name: str, there: int | None) -> str:
        made = f"{self.folder} was made from {self.index['model']}"
        if there is not None:
            return (
                f"{self.folder} holds {there} singular triplets of {name}, and {key.dropped} are dropped: "
                f"make it with `kasatune decompose --rank {key.dropped}`, lower the rank, or leave tails out"
            )
        return (
            f"{self.folder} holds no tail of {name}: {made} (dtype {self.index['dtype']}), whose weights have other "
            "values or which left this layer out; decompose the same checkpoint with --target for this layer and "
            "--dtype as the model is loaded, or leave tails out"
        )


def read_index(folder: Path) -> dict[str, Any]:
    """index.json of a directory of tails.

    Raises:
        InputError: missing, damaged, or of another version.
    """
    path = folder / INDEX
    if not path.is_file():
        what = "holds no finished decomposition" if folder.is_dir() else "is no directory"
        raise InputError(f"{folder} {what}; give a directory that `kasatune decompose` wrote to its end")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        whole = (
            index["format"] == FORMAT
            and isinstance(index["rank"], int)
            and isinstance(index["model"], str)
            and isinstance(index["dtype"], str)
            and all(
                isinstance(layer["weight"], str) and isinstance(layer["dropped"], int)
                for layer in index["layers"].values()
            )
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        whole, index = False, {}
    if not whole:
        raise InputError(f"{path} is damaged; run `kasatune decompose` again with --overwrite")
    if index.get("algorithm") != ALGORITHM:
        raise InputError(f"{path} is of another version of kasatune; run `kasatune decompose` again with --overwrite")
    return index
