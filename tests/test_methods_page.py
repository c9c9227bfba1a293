from __future__ import annotations

from scripts.write_methods_page import PAGE, page

from kasatune.methods.table import METHODS


def test_the_methods_page_is_up_to_date():
    written = PAGE.read_text(encoding="utf-8")
    own = [info for info in METHODS.values() if info.module.startswith("kasatune.")]
    assert page(own) == written, "docs/methods.md is out of date: run `make tree`"
    assert all(f"\n## {info.name}\n" in written for info in own)
