"""Write docs/results/peft-suite.md, the table of PEFT's test suite, from the records of its runs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from peer_tests.outcomes import REFUSALS, Outcome, classify

_HEAD = """# PEFT's own test suite

The tests of PEFT {version}, run on the tuners of this project by `make peer-tests PEFT=path-to-a-checkout`.

Every case for LoRA in PEFT's lists of cases gets a twin for each tuner here: the same model and settings with
`KasaConfig`, `BottleneckConfig` or the configuration of a mixture of experts. Models of the
hub are built from configurations, with random weights; tests that need another file of the hub are counted under "no
file". "Skipped" are tests that PEFT itself skips for such a case.
"Refused" are documented differences from LoRA, listed below; any other outcome is a failure.

"""


def write_page(records: Path, page: Path, version: str) -> int:
    """Write the page; return 1 if a test failed that is no documented refusal, or did not end, and 0 otherwise.

    Args:
        records: the folder with a file of JSON lines and a count of tests for each test file.
        page: the Markdown file.
        version: of PEFT.
    """
    collected = {file.stem: int(file.read_text(encoding="utf-8")) for file in sorted(records.glob("*.count"))}
    rows = {name: list(_read(records / f"{name}.jsonl")) for name in collected}
    page.write_text(render(rows, collected, version), encoding="utf-8")
    failed = [line for lines in rows.values() for line in lines if classify(line)[0] == Outcome.FAILED]
    for line in failed[:50]:
        print(f"failed: {line['test']}: {classify(line)[1][:200]}")
    ended = sum(map(len, rows.values()))
    print(f"peer-tests: {ended:,} of {sum(collected.values()):,} tests ended, {len(failed):,} failed; {page}")
    return int(bool(failed) or ended == 0 or ended < sum(collected.values()))


def render(rows: Mapping[str, Sequence[Mapping[str, Any]]], collected: Mapping[str, int], version: str) -> str:
    """The page.

    Args:
        rows: the records of each test file.
        collected: number of tests in each file; those without a record did not end.
        version: of PEFT.
    """
    counts: Counter[tuple[str, str, Outcome]] = Counter()
    refusals: Counter[tuple[str, str]] = Counter()
    failures: Counter[str] = Counter()
    for file, lines in rows.items():
        for line in lines:
            outcome, reason = classify(line)
            counts[file, line["twin"], outcome] += 1
            if outcome == Outcome.REFUSED:
                refusals[reason, line["twin"].partition(",")[0]] += 1
            elif outcome == Outcome.FAILED:
                failures[f"`{line['test']}`: {' '.join(reason.split())[:200]}"] += 1
    parts = [_HEAD.format(version=version), _outcome_table(counts)]
    missing = {name: count - len(rows[name]) for name, count in collected.items() if count > len(rows[name])}
    if missing:
        listed = ", ".join(f"{count:,} of `{name}.py`" for name, count in missing.items())
        parts.append(f"\nNot run when this table was written: {listed}.\n")
    parts.append(_refusal_list(refusals))
    if failures:
        parts.append("\n## Failures\n\n" + "".join(f"- {text}\n" for text in sorted(failures)))
    return "".join(parts)


def _outcome_table(counts: Counter[tuple[str, str, Outcome]]) -> str:
    lines = [f"| test file | tuner | {' | '.join(Outcome)} |", f"|---|---|{'---|' * len(Outcome)}"]
    for file, twin in sorted({key[:2] for key in counts}):
        numbers = " | ".join(f"{counts[file, twin, outcome]:,}" for outcome in Outcome)
        lines.append(f"| `{file}.py` | {twin} | {numbers} |")
    totals = " | ".join(f"{sum(n for key, n in counts.items() if key[2] == outcome):,}" for outcome in Outcome)
    lines.append(f"| all | | {totals} |")
    return "\n".join(lines) + "\n"


def _refusal_list(refusals: Counter[tuple[str, str]]) -> str:
    lines = ["\n## Refusals\n", "| difference | tests | reason |", "|---|---|---|"]
    for refusal in REFUSALS:
        tests = sum(number for (title, _), number in refusals.items() if title == refusal.title)
        if tests:
            lines.append(f"| {refusal.title} | {tests:,} | {refusal.why} |")
    return "\n".join(lines) + "\n"


def _read(file: Path) -> Iterable[dict[str, Any]]:
    """The last record of every test."""
    if not file.is_file():
        return []
    with file.open(encoding="utf-8") as lines:
        return {record["test"]: record for record in map(json.loads, lines)}.values()
