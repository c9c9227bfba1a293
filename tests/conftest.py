"""What every test starts from."""

from __future__ import annotations

import gc
import os
import shutil
import signal
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import settings

from tests.shared_data import shared

# The first calls of torch kernels are slow, and so is a busy machine. The same examples are drawn each time, so that a
# run that failed can be repeated anywhere.
settings.register_profile("kasatune", deadline=None, derandomize=True)
settings.load_profile("kasatune")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest test first: at the end all other processes would wait for it."""
    items.sort(key=lambda item: not item.nodeid.startswith("tests/ui/test_browser.py"))


@pytest.fixture(autouse=True, scope="session")
def ctrl_c_works():
    """Python's own handling of Ctrl-C, also where the tests were started in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True, scope="module")
def collector_skips_imported_modules():
    """Leave what is alive when a file begins, above all imported modules, out of later garbage collections.

    A training run collects several times; the modules of torch and transformers made that three quarters of its
    time for a toy.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def no_cache_of_the_user():
    """No test reads or fills the cache of the person who runs it; those of the cache have one of their own."""
    before = os.environ.get("KASATUNE_CACHE")
    os.environ["KASATUNE_CACHE"] = "off"
    yield
    if before is None:
        del os.environ["KASATUNE_CACHE"]
    else:
        os.environ["KASATUNE_CACHE"] = before


@pytest.fixture
def data_hub(tmp_path):
    """A hub of data sets on this machine, in the place of the real one."""
    from tests.hub_server import served

    with served(tmp_path / "cache") as hub:
        yield hub


@pytest.fixture
def no_network(monkeypatch):
    """The hub cannot be reached."""
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def decompositions(monkeypatch):
    """Names of the layers that a new adapter decomposes."""
    from kasatune.kasa.truncation import compute_tails

    counted = []
    original = compute_tails.tail_svd_many

    def counting(weights, ranks, **options):
        counted.extend(options["names"])
        return original(weights, ranks, **options)

    monkeypatch.setattr(compute_tails, "tail_svd_many", counting)
    return counted


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small random BERT."""
    from tests.toys import make_bert

    return make_bert(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small random Llama."""
    from tests.text_toys import make_llama

    return make_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small random GPT-2."""
    from tests.text_toys import make_gpt2

    return make_gpt2(tmp_path_factory.mktemp("models") / "gpt2")


class RealServer(NamedTuple):
    """Address and model name of a served model."""

    url: str
    model: str


@pytest.fixture(scope="session")
def real_server(tmp_path_factory):
    """transformers' own server of the OpenAI protocol with a real small Llama."""
    from benchmarks.local_server import served

    from kasatune.data.chat_template import PLAIN_TEMPLATE

    pytest.importorskip("fastapi", reason="transformers serve needs fastapi: pip install 'transformers[serving]'")
    pytest.importorskip("uvicorn", reason="transformers serve needs uvicorn: pip install 'transformers[serving]'")
    model = shutil.copytree(shared("models/stories260K-hf"), tmp_path_factory.mktemp("served") / "model")
    (model / "chat_template.jinja").write_text(PLAIN_TEMPLATE)
    with served(model) as url:
        yield RealServer(f"{url}/v1", str(model))
