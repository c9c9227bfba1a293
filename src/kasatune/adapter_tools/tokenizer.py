"""Find and load the tokenizer of an adapted model: the one saved with the adapter, else that of the base."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from kasatune.errors import ModelError
from kasatune.io.library_noise import quiet
from kasatune.io.model_location import ModelLocation
from kasatune.io.run_layout import ADAPTER
from kasatune.models.load import read_tokenizer
from kasatune.models.saved_tokenizer import GENERATION_CONFIG

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER_FILES = (
    *("tokenizer.json", TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
)

NAMED_TEMPLATES = "additional_chat_templates"
"""The folder with the chat templates of a tokenizer that has several, other than the default one."""


def saved_tokenizer(adapter: Path, run: Path | None) -> Path | None:
    """The folder with the tokenizer that was saved with an adapter; None if none was.

    Args:
        adapter: folder of the adapter.
        run: the run directory that it belongs to, if any.
    """
    folders = [adapter, *([run / ADAPTER] if run else [])]
    return next((folder for folder in folders if (folder / TOKENIZER_CONFIG).is_file()), None)


def copy_saved_tokenizer(adapter: Path, run: Path | None, out: Path) -> None:
    """Replace the tokenizer in `out`, its chat templates and generation_config.json, by those saved with an adapter.

    Without a saved tokenizer nothing is changed.

    Args:
        adapter: folder of the adapter.
        run: the run directory that it belongs to, if any.
        out: the folder of the copy.
    """
    saved = saved_tokenizer(adapter, run)
    if saved is None:
        return
    for name in TOKENIZER_FILES:
        (out / name).unlink(missing_ok=True)
    for name in (*TOKENIZER_FILES, GENERATION_CONFIG):
        if (saved / name).is_file():
            shutil.copyfile(saved / name, out / name)
    shutil.rmtree(out / NAMED_TEMPLATES, ignore_errors=True)
    if (saved / NAMED_TEMPLATES).is_dir():
        shutil.copytree(saved / NAMED_TEMPLATES, out / NAMED_TEMPLATES)


def load_tokenizer(
    place: Path | ModelLocation, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase | None:
    """The tokenizer in a folder or of a model; None if a folder contains none.

    Raises:
        ModelError: its files cannot be read.
    """
    location = ModelLocation(str(place)) if isinstance(place, Path) else place
    folder = Path(location.path)
    in_files = location.is_local and location.gguf_file is None
    if in_files and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    try:
        with quiet():
            return read_tokenizer(location, revision, trust_remote_code)
    except Exception as fault:  # transformers raises many types for files that it cannot read
        reason = (str(fault).strip().splitlines() or [type(fault).__name__])[0]
        file = location.file if location.gguf_file else location.path
        raise ModelError(f"{file}: its tokenizer cannot be loaded: {reason}; copy the model again") from fault
