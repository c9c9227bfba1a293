from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
from benchmarks.local_server import served

from kasatune.runs.text.chats import PLAIN_TEMPLATE
from tests.runs.text_toys import make_gpt2, make_llama
from tests.runs.toys import make_bert
from tests.shared_data import shared


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bert(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gpt2(tmp_path_factory.mktemp("models") / "gpt2")


class RealServer(NamedTuple):
    url: str
    model: str


@pytest.fixture(scope="session")
def real_server(tmp_path_factory):
    """transformers' own server of the OpenAI protocol with a real small Llama."""
    pytest.importorskip("fastapi", reason="transformers serve needs fastapi: pip install 'transformers[serving]'")
    pytest.importorskip("uvicorn", reason="transformers serve needs uvicorn: pip install 'transformers[serving]'")
    model = shutil.copytree(shared("models/stories260K-hf"), tmp_path_factory.mktemp("served") / "model")
    (model / "chat_template.jinja").write_text(PLAIN_TEMPLATE)
    with served(model) as url:
        yield RealServer(f"{url}/v1", str(model))
