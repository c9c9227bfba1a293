"""One synthesis: from a recipe to a directory with rows, a data card and every reply of the teacher."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kasatune.data.readers.conversations import read_chats
from kasatune.errors import DataError, OutputError, RecipeError, WorkError
from kasatune.io.atomic import remove, write_json, write_text
from kasatune.llm_client import AnswerCache, CachedClient, Cost, Endpoint, Prices, require_endpoint, total_cost
from kasatune.recipes.yaml_io import parse_yaml
from kasatune.runs.directory import check_place
from kasatune.synthesis.collect_rows import Gathered, gather
from kasatune.synthesis.data_card import data_card
from kasatune.synthesis.recipe import SynthesisRecipe, to_yaml

ROWS = "train.jsonl"
REPORT = "synthesis.json"
CARD = "README.md"
RECIPE = "recipe.yaml"
REPLIES = "replies.jsonl"

_WRITTEN = (ROWS, REPORT, CARD, RECIPE, REPLIES)
# What may change when a synthesis goes on: none of it changes a row that is there.
_FREE = {
    "teacher": ("url", "rate", "workers", "prompt_price", "completion_price"),
    "data": ("count", "max_requests"),
    "seeds": ("file",),
}


def synthesize(
    recipe: SynthesisRecipe,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Make the rows that `recipe` wants and write them to `out`.

    Every reply is on disk before the next request goes out, and is never asked for again.

    Args:
        recipe: checked.
        out: a new or empty directory, unless one of the next two says otherwise.
        resume: go on with what `out` holds; a higher `data.count` makes more of the same.
        overwrite: begin anew, in the place of what an earlier synthesis wrote to `out`.
        progress: is told how many rows there are, of how many.

    Returns:
        What synthesis.json holds: "rows", "wanted", "requests", "left_out", "cost", "asked" (requests that were sent
        now), and the rows' "sha256".

    Raises:
        InputError: recipe, seeds, key or output is wrong.
        WorkError: the teacher could not be reached, or none of its replies could be used.
    """
    seeds, _ = read_chats(Path(recipe.seeds.file))
    if not seeds:
        raise DataError(f"{recipe.seeds.file}: no row to begin from")
    check_output(recipe, out, resume=resume, overwrite=overwrite)
    teacher = recipe.teacher
    endpoint = Endpoint(teacher.model, teacher.url, teacher.rate, teacher.workers)
    require_endpoint(endpoint)
    if overwrite:
        for name in _WRITTEN:
            remove(out / name)
    with AnswerCache(out / REPLIES) as ledger, CachedClient(endpoint, ledger) as client:
        write_text(out / RECIPE, to_yaml(recipe))
        found = gather(recipe, seeds, client, progress)
        asked = client.requests_sent
    if not found.rows:
        reasons = "; ".join(f"{number} {reason}" for reason, number in found.left_out.items()) or "no requests"
        raise WorkError(f"{out}: {found.requests} requests gave no row that can be used ({reasons}); see {REPLIES}")
    return _write(recipe, out, found, asked)


def check_output(recipe: SynthesisRecipe, out: Path, *, resume: bool, overwrite: bool) -> None:
    """A synthesis may be written to `out`; writes nothing itself.

    Raises:
        OutputError: `out` is a file, cannot be written, or holds something, and neither `overwrite` nor a `resume` of
            the same recipe says that this is as it should be.
    """
    if resume and overwrite:
        raise OutputError("--resume and --overwrite exclude each other: give one")
    check_place(out)
    if overwrite or not out.is_dir() or not any(out.iterdir()):
        return
    if not resume:
        raise OutputError(f"{out} holds something already; give another directory, --resume or --overwrite")
    path = out / RECIPE
    if not path.is_file():
        raise OutputError(f"{out} holds no synthesis to go on with ({RECIPE} is missing); give another directory")
    try:
        before = SynthesisRecipe.model_validate(parse_yaml(path.read_text(encoding="utf-8")))
    except ValueError as fault:
        raise RecipeError([f"damaged ({fault}); give --overwrite"], str(path)) from fault
    changed = _differences(before, recipe)
    if changed:
        raise OutputError(f"{out} was begun with another recipe ({'; '.join(changed)}); give another directory")


def _differences(before: SynthesisRecipe, now: SynthesisRecipe) -> list[str]:
    old, new = before.model_dump(), now.model_dump()
    return [
        f"{section}.{key}: {value!r} then, {new[section][key]!r} now"
        for section, values in old.items()
        for key, value in values.items()
        if value != new[section][key] and key not in _FREE.get(section, ())
    ]


def _write(recipe: SynthesisRecipe, out: Path, found: Gathered, asked: int) -> dict[str, Any]:
    lines = [
        json.dumps({"instruction": row.instruction, "output": row.output}, ensure_ascii=False) for row in found.rows
    ]
    content = "".join(f"{line}\n" for line in lines)
    report = {
        "rows": len(found.rows),
        "wanted": recipe.data.count,
        "requests": found.requests,
        "asked": asked,
        "left_out": dict(found.left_out),
        "cost": _cost(recipe, found).to_dict(),
        "sha256": hashlib.sha256(content.encode()).hexdigest(),
        "seeds_sha256": hashlib.sha256(Path(recipe.seeds.file).read_bytes()).hexdigest(),
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_text(out / ROWS, content)
    write_json(out / REPORT, report)
    write_text(out / CARD, data_card(recipe, report, found.rows[0]))
    return report


def _cost(recipe: SynthesisRecipe, found: Gathered) -> Cost:
    teacher = recipe.teacher
    given = teacher.prompt_price is not None and teacher.completion_price is not None
    prices = Prices(teacher.prompt_price or 0.0, teacher.completion_price or 0.0) if given else None
    return total_cost(found.replies, prices)
