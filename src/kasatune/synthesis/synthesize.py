"""Run a synthesis: from a recipe to a directory with rows, a data card and every reply of the teacher."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kasatune.data.readers.conversations import read_chats
from kasatune.errors import DataError, OutputError, RecipeError, WorkError
from kasatune.io.atomic import remove, write_json, write_text
from kasatune.llm_client import (
    AnswerCache,
    CachedClient,
    Cost,
    Endpoint,
    Prices,
    ProgressCallback,
    require_endpoint,
    total_cost,
)
from kasatune.recipes.yaml_io import parse_yaml
from kasatune.runs.directory import check_place
from kasatune.synthesis.collect_rows import CollectedRows, collect_rows
from kasatune.synthesis.data_card import data_card
from kasatune.synthesis.recipe import SynthesisRecipe, to_yaml
from kasatune.wording import counted

ROWS = "train.jsonl"
REPORT = "synthesis.json"
CARD = "README.md"
RECIPE = "recipe.yaml"
REPLIES = "replies.jsonl"

_OUTPUT_FILES = (ROWS, REPORT, CARD, RECIPE, REPLIES)
# Keys that may change when a synthesis is resumed: none of them changes a row that exists.
_CHANGEABLE = {
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
    progress: ProgressCallback = lambda done, total: None,
) -> dict[str, Any]:
    """Generate the rows that `recipe` requests and write them to `out`.

    Every reply is written to disk before the next request is sent, and is never requested again.

    Args:
        recipe: a validated recipe.
        out: a new or empty directory, unless `resume` or `overwrite` is set.
        resume: continue the synthesis in `out`; a higher `data.count` adds rows.
        overwrite: start again and replace the files that an earlier synthesis wrote to `out`.
        progress: called with the number of rows so far and the number requested.

    Returns:
        The content of synthesis.json: "rows", "wanted", "requests", "left_out", "cost", "asked" (requests sent by this
        call), and "sha256" of the rows.

    Raises:
        InputError: the recipe, seeds, key or output is invalid.
        WorkError: the teacher could not be reached, or none of its replies has a valid row.
    """
    seeds, _ = read_chats(Path(recipe.seeds.file))
    if not seeds:
        raise DataError(f"{recipe.seeds.file}: no rows; at least one seed row is needed")
    check_output(recipe, out, resume=resume, overwrite=overwrite)
    teacher = recipe.teacher
    endpoint = Endpoint(teacher.model, teacher.url, teacher.rate, teacher.workers)
    require_endpoint(endpoint)
    if overwrite:
        for name in _OUTPUT_FILES:
            remove(out / name)
    with AnswerCache(out / REPLIES) as ledger, CachedClient(endpoint, ledger) as client:
        write_text(out / RECIPE, to_yaml(recipe))
        collected = collect_rows(recipe, seeds, client, progress)
        requests_sent = client.requests_sent
    if not collected.rows:
        reasons = "; ".join(f"{number} {reason}" for reason, number in collected.left_out.items()) or "no requests"
        raise WorkError(f"{out}: {counted(collected.requests, 'request')} gave no valid row ({reasons}); see {REPLIES}")
    return _write(recipe, out, collected, requests_sent)


def check_output(recipe: SynthesisRecipe, out: Path, *, resume: bool, overwrite: bool) -> None:
    """Check that a synthesis may be written to `out`; writes nothing itself.

    Raises:
        OutputError: `out` is a file, cannot be written, or is not empty and neither `overwrite` nor a `resume` of the
            same recipe is requested.
    """
    if resume and overwrite:
        raise OutputError("--resume and --overwrite exclude each other: give one")
    check_place(out)
    if overwrite or not out.is_dir() or not any(out.iterdir()):
        return
    if not resume:
        raise OutputError(f"{out} is not empty; give another directory, --resume or --overwrite")
    path = out / RECIPE
    if not path.is_file():
        raise OutputError(f"{out} holds no synthesis to resume ({RECIPE} is missing); give another directory")
    try:
        before = SynthesisRecipe.model_validate(parse_yaml(path.read_text(encoding="utf-8")))
    except ValueError as fault:
        raise RecipeError([f"damaged ({fault}); give --overwrite"], str(path)) from fault
    changed = _differences(before, recipe)
    if changed:
        raise OutputError(f"{out} was started with another recipe ({'; '.join(changed)}); give another directory")


def _differences(before: SynthesisRecipe, now: SynthesisRecipe) -> list[str]:
    old, new = before.model_dump(), now.model_dump()
    return [
        f"{section}.{key}: {value!r} then, {new[section][key]!r} now"
        for section, values in old.items()
        for key, value in values.items()
        if value != new[section][key] and key not in _CHANGEABLE.get(section, ())
    ]


def _write(recipe: SynthesisRecipe, out: Path, collected: CollectedRows, requests_sent: int) -> dict[str, Any]:
    lines = [
        json.dumps({"instruction": row.instruction, "output": row.output}, ensure_ascii=False) for row in collected.rows
    ]
    content = "".join(f"{line}\n" for line in lines)
    report = {
        "rows": len(collected.rows),
        "wanted": recipe.data.count,
        "requests": collected.requests,
        "asked": requests_sent,
        "left_out": dict(collected.left_out),
        "cost": _cost(recipe, collected).to_dict(),
        "sha256": hashlib.sha256(content.encode()).hexdigest(),
        "seeds_sha256": hashlib.sha256(Path(recipe.seeds.file).read_bytes()).hexdigest(),
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_text(out / ROWS, content)
    write_json(out / REPORT, report)
    write_text(out / CARD, data_card(recipe, report, collected.rows[0]))
    return report


def _cost(recipe: SynthesisRecipe, collected: CollectedRows) -> Cost:
    teacher = recipe.teacher
    given = teacher.prompt_price is not None and teacher.completion_price is not None
    prices = Prices(teacher.prompt_price or 0.0, teacher.completion_price or 0.0) if given else None
    return total_cost(collected.replies, prices)
