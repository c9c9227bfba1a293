"""Data sets of the hub, read by name at one commit, which is told: a branch moves on, a commit does not."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from kasatune.errors import DataError, KasatuneError, WorkError

HUB = "hub:"
CONVERTED = "refs/convert/parquet"
"""The branch in which the hub keeps a copy of a data set as Parquet, also of those that are made by a script."""

_SCRIPT = "script"
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubName:
    """What `hub:NAME:SPLIT` or `hub:NAME@REVISION:SPLIT` names.

    Attributes:
        name: of the data set.
        split: of its rows.
        revision: a commit, branch or tag; None for the newest commit.
    """

    name: str
    split: str
    revision: str | None = None

    def __str__(self) -> str:
        at = "" if self.revision is None else f"@{self.revision}"
        return f"{HUB}{self.name}{at}:{self.split}"

    def at(self, revision: str | None) -> HubName:
        """The same rows of another revision."""
        return replace(self, revision=revision)


@dataclass(frozen=True)
class HubData:
    """A data set as it was read.

    Attributes:
        tables: rows by split.
        commit: that they were read from; None where the local cache does not tell it.
        source: "name@commit", for people.
        notes: what was read in the place of what was asked for.
    """

    tables: Mapping[str, Any]
    commit: str | None
    source: str
    notes: tuple[str, ...] = ()


def parse_hub_name(source: str) -> HubName:
    """The parts of "hub:NAME:SPLIT" or "hub:NAME@REVISION:SPLIT".

    Raises:
        DataError: it is none of these.
    """
    place, _, split = source.removeprefix(HUB).rpartition(":")
    name, at, revision = place.partition("@")
    if not source.startswith(HUB) or not name or not split or (at and not revision):
        raise DataError(f"{source!r} names no data set and split; write hub:NAME:SPLIT or hub:NAME@REVISION:SPLIT")
    return HubName(name, split, revision or None)


def leaves_open(source: Any, begun: Any) -> bool:
    """Whether `source` is "hub:NAME:SPLIT" and `begun` the same rows at a commit."""
    if not all(isinstance(one, str) and one.startswith(HUB) for one in (source, begun)):
        return False
    return parse_hub_name(begun).at(None) == parse_hub_name(source)


def read_hub(name: str, config: str | None = None, *, revision: str | None = None, instead: str) -> HubData:
    """The splits of a data set at one commit.

    The commit is settled before the rows are fetched. Without a network the local cache of `datasets` is read, which
    holds what was fetched earlier; it serves its newest rows whatever revision it is asked for, so that a commit which
    it does not hold is refused here. A data set that is made by a script, which datasets 5 no longer runs, is read from
    the hub's own copy in Parquet where no revision is given.

    Args:
        name: on the hub.
        config: the part of the data set to read; in the hub's own copy, a folder.
        revision: a commit, branch or tag; None for the newest commit.
        instead: what the user can give in its place, to end an error with.

    Raises:
        DataError: the data set is made by a script.
        WorkError: the hub cannot be reached, or has no such data set, part or revision.
    """
    remedy = f"check name, revision and network, or {instead}"
    with told_of(name, remedy):
        found = _commit(name, revision, remedy)
        notes = []
        if found is _SCRIPT and revision is None:
            notes.append(f"{name} is made by a script, which is not run; read is the hub's copy of it, {CONVERTED}")
            try:
                found = _commit(name, CONVERTED, remedy)
            except WorkError as fault:
                raise DataError(f"{name} is made by a script, of which the hub keeps no copy; {instead}") from fault
        if found is _SCRIPT:
            raise DataError(
                f"{name}, revision {revision or CONVERTED}, is made by a script, which datasets no longer runs: read"
                f" the hub's copy of it, revision {CONVERTED}, or {instead}"
            )
        builder = _builder(name, config, found or revision)
        commit = _settled(name, builder, found or revision, notes)
        builder.download_and_prepare()
        tables = {str(split): builder.as_dataset(split=split) for split in builder.info.splits}
    return HubData(tables, commit, f"{name}@{commit or 'the local cache'}", tuple(notes))


@contextmanager
def told_of(what: str, remedy: str) -> Iterator[None]:
    """Whatever datasets and the hub client raise, as one error about `what`.

    Args:
        what: is being fetched.
        remedy: what the user can do.

    Raises:
        WorkError: it could not be had.
    """
    try:
        yield
    except KasatuneError:
        raise
    except Exception as fault:  # dozens of unrelated types
        reason = (str(fault).strip().splitlines() or [""])[0]
        raise WorkError(f"{what} could not be had: {type(fault).__name__}: {reason}; {remedy}") from fault


def _commit(name: str, revision: str | None, remedy: str) -> str | None:
    """The commit that a revision is now; None where the hub cannot be reached, `_SCRIPT` where it is one."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = HfApi().dataset_info(name, revision=revision, timeout=30)
    except RepositoryNotFoundError as fault:
        raise WorkError(f"{name}: the hub has no such data set, or does not show it to you; {remedy}") from fault
    except RevisionNotFoundError as fault:
        raise WorkError(f"{name}: the hub has no revision {revision!r} of it; {remedy}") from fault
    except Exception:  # whatever a client raises without a network; datasets may have the rows in its cache
        return None
    script = f"{name.rpartition('/')[2]}.py"
    return _SCRIPT if any(file.rfilename == script for file in info.siblings or ()) else info.sha


def _builder(name: str, config: str | None, revision: str | None) -> Any:
    """What reads a data set."""
    import datasets

    try:
        return datasets.load_dataset_builder(name, config, revision=revision)
    except ValueError as fault:
        if config is None or "BuilderConfig" not in str(fault):
            raise
    # The hub's own copy has a folder for each part and nothing that lists them.
    return datasets.load_dataset_builder(name, data_dir=config, revision=revision)


def _settled(name: str, builder: Any, revision: str | None, notes: list[str]) -> str | None:
    """The commit that `builder` reads."""
    from datasets.packaged_modules.cache.cache import Cache

    commit = builder.hash if _COMMIT.fullmatch(str(builder.hash)) else None
    if not isinstance(builder, Cache):
        return commit
    if revision is not None and revision != commit:
        raise WorkError(
            f"{name}: the hub cannot be reached, and the local cache holds {commit or 'an unknown commit'}, not"
            f" {revision}; check the network, or set the revision to what the cache holds"
        )
    notes.append(f"{name}: the rows are those of the local cache, not fetched anew")
    return commit
