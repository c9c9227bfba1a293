from __future__ import annotations

from pathlib import Path

import pytest

from tests.runs.toys import make_bert


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bert(tmp_path_factory.mktemp("models") / "bert")
