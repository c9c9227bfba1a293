from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# The tokenizers library warns on standard error when a process that has tokenized is forked.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# They warn, when they are imported, of things that no user of this command can act on.
_TALKATIVE = ("bitsandbytes", "torch.utils._pytree", "torchao")
_NOT_DETERMINISTIC = (
    re.compile(r"^(?P<operation>\S+) does not have a deterministic implementation"),
    re.compile(r"^(?P<operation>.+? attention) defaults to a non-deterministic algorithm", re.IGNORECASE),
    re.compile(r"^Deterministic behavior was enabled .* this operation .* uses (?P<operation>CuBLAS)", re.DOTALL),
)
_NO_GPU = re.compile(r"^CUDA initialization: (?P<reason>.+?)(?: \(Triggered internally at .*)?$", re.DOTALL)
_LOGGERS = (
    *("peft", "accelerate", "datasets", "huggingface_hub", "torchao", "bitsandbytes", "DeepSpeed"),
    *("torch.utils._pytree", "torch.distributed.elastic.multiprocessing.redirects"),
)

_warned_of: dict[str, None] = {}


def not_deterministic() -> tuple[str, ...]:
    """The operations that torch has warned of in this process; of some it does so once a process and no more."""
    return tuple(_warned_of)


def hush_imports() -> None:
    """Have the libraries beneath be quiet while they are imported; for a process of kasatune's own, before it does."""
    for library in _TALKATIVE:
        logging.getLogger(library).setLevel(logging.ERROR)


@contextmanager
def quiet(tell: Callable[[str], None] | None = None) -> Iterator[None]:
    """Keep the progress bars, reports and warnings of other libraries off the terminal.

    Warnings of kasatune itself are passed on, each once, and of others those that matter, in its own words: an
    operation that is not deterministic, a GPU that cannot be used. Errors are raised as ever. Settings are put back
    at the end.
    The module is light: importing the heavy ones within this context keeps what they say at import off the terminal.

    Args:
        tell: receives the text of a warning; None leaves it to Python's own way of showing warnings.
    """
    import datasets
    import torch
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    dataset_bars = not datasets.are_progress_bars_disabled()
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with _own_warnings(tell):
            if not torch.accelerator.is_available():
                os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed, which accelerate imports, asks for a GPU
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
        if dataset_bars:
            datasets.enable_progress_bars()
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def _own_warnings(tell: Callable[[str], None] | None) -> Iterator[None]:
    seen: set[str] = set()
    show = warnings.showwarning

    def passed_on(message: Warning | str, category: type[Warning], *place: Any, **further: Any) -> None:
        text = _in_our_words(str(message))
        if text is None and _is_ours(sys._getframe(1)):
            text = str(message)
        if text is None or text in seen:
            return
        seen.add(text)
        if tell is None:
            show(type(message)(text) if isinstance(message, Warning) else text, category, *place, **further)
        else:
            tell(text)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = passed_on
        yield


def _in_our_words(message: str) -> str | None:
    """What matters to a user of a library's warning; None where it is noise."""
    for wording in _NOT_DETERMINISTIC:
        if found := wording.match(message):
            _warned_of[found["operation"]] = None
            return (
                f"{found['operation']} is not deterministic on this device: "
                "made again, the run may differ in its last digits"
            )
    found = _NO_GPU.match(message)
    return f"no GPU is used: {found['reason'].strip()}" if found else None


def _is_ours(frame: Any) -> bool:
    """Whether the code that warned is kasatune's; a warning's own file name is often that of its caller."""
    while frame is not None and frame.f_globals.get("__name__") == "warnings":
        frame = frame.f_back
    return frame is not None and str(frame.f_globals.get("__name__", "")).partition(".")[0] == "kasatune"
