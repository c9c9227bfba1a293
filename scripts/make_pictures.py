"""Make the picture of README.md: one task of a real comparison's report.html, drawn by headless Chromium.

`make pictures` runs it. Needs `chromium` on the PATH, or the program that the environment variable CHROMIUM names.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REPORT = ROOT / "docs" / "results" / "compare-minilm" / "report.html"
PICTURE = ROOT / "docs" / "assets" / "comparison.png"
SECTION = "<section>\n<h2>glue/sst2"
STYLE = "main { padding: 0 16px } section, h2 { margin-top: 12px } </style>"
WIDTH, HEIGHT = 1080, 1116
LARGEST = 300_000
"""Bytes that the picture may take."""


def excerpt(report: str) -> str:
    """The page with one task's table and its first two charts, without the text between them."""
    head, _, rest = report.partition("<main>")
    body = SECTION + rest.partition(SECTION)[2]
    end = body.index("</figure>", body.index("</figure>") + 1) + len("</figure>")
    shown = re.sub(r"^<p.*?</p>$", "", body[:end], flags=re.MULTILINE)
    return f"{head.replace('</style>', STYLE)}<main>{shown}</div></section></main></body></html>"


def main() -> None:
    """Write the picture.

    Raises:
        SystemExit: Chromium is missing or failed, or the picture is too large.
    """
    browser = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        raise SystemExit("no Chromium found: install `chromium`, or set CHROMIUM to the program")
    with tempfile.TemporaryDirectory() as folder:
        page, picture = Path(folder, "page.html"), Path(folder, "picture.png")
        page.write_text(excerpt(REPORT.read_text(encoding="utf-8")), encoding="utf-8")
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        size, out = f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={picture}"
        done = subprocess.run(
            [browser, *flags, size, out, page.as_uri()], capture_output=True, text=True, timeout=120, check=False
        )
        if done.returncode or not picture.is_file():
            raise SystemExit(f"{browser} failed with exit status {done.returncode}: {done.stderr.strip()[-500:]}")
        if picture.stat().st_size > LARGEST:
            raise SystemExit(f"the picture takes {picture.stat().st_size:,} bytes; the limit is {LARGEST:,}")
        PICTURE.parent.mkdir(exist_ok=True)
        shutil.move(picture, PICTURE)


if __name__ == "__main__":
    main()
