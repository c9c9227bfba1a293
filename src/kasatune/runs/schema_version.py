"""Refuse files of a run that a later version of kasatune wrote in a newer form."""

from __future__ import annotations

from typing import Any

from kasatune.errors import InputError


def require_known_version(content: Any, known: int, place: str) -> None:
    """Check the `schema_version` of a JSON object; content without one passes, since early versions wrote none.

    Args:
        content: the parsed JSON.
        known: the latest schema version that this version of kasatune reads.
        place: the file, and the line in it if it has several, for the message.

    Raises:
        InputError: the schema version is newer than `known`.
    """
    version = content.get("schema_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > known:
        raise InputError(
            f"{place} has schema_version {version}, and this version of kasatune reads up to {known}; a later version"
            " wrote it: upgrade kasatune, or use the version that metrics.json names under versions"
        )
