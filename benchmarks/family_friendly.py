"""Make the family-friendly task: does a sentence about a restaurant say that families are welcome?

python -m benchmarks.family_friendly E2E_FOLDER OUT_FOLDER

E2E_FOLDER holds train.txt and valid.txt of the E2E NLG challenge, `meaning representation||text` a line. The label is
that of the meaning representation: yes, no, or not said. The output is train.csv and validation.csv with the columns
text and label, balanced by label, drawn with a fixed seed, without duplicates, and without validation texts among the
training texts.
"""

from __future__ import annotations

import csv
import random
import re
import sys
from pathlib import Path

SIZES = {"train": ("train.txt", 1002), "validation": ("valid.txt", 600)}


def label(meaning: str) -> str:
    found = re.search(r"family ?friendly\s*[:\[]\s*(yes|no)", meaning, re.IGNORECASE)
    return found[1].lower() if found else "not said"


def main() -> None:
    source, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    draw, taken = random.Random(0), set()
    for split, (name, size) in SIZES.items():
        rows = [line.split("||", 1) for line in (source / name).read_text(encoding="utf-8").splitlines() if line]
        draw.shuffle(rows)
        kept: dict[str, list[str]] = {"yes": [], "no": [], "not said": []}
        for meaning, text in rows:
            group = kept[label(meaning)]
            if text.strip() not in taken and len(group) < size // len(kept):
                taken.add(text.strip())
                group.append(text.strip())
        lines = [(text, name) for name, texts in kept.items() for text in texts]
        draw.shuffle(lines)
        with (out / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *lines])


if __name__ == "__main__":
    main()
