"""Keep the progress bars, logs and warnings of other libraries off the terminal, and rephrase those that matter."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any

# The tokenizers library prints a warning when a process that has tokenized is forked.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# On import these libraries warn of things that no user of the command line can act on.
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
    """The nondeterministic operations that torch has warned of in this process; for some it warns only once."""
    return tuple(_warned_of)


def hush_imports() -> None:
    """Silence libraries during their import; for processes that kasatune starts, before they import them."""
    for library in _TALKATIVE:
        logging.getLogger(library).setLevel(logging.ERROR)


@contextmanager
def quiet(tell: Callable[[str], None] | None = None) -> Generator[None]:
    """Keep the progress bars, reports and warnings of other libraries off the terminal.

    Warnings of kasatune are passed on, each once, and so are two kinds of others, rephrased: an operation that is not
    deterministic, a GPU that cannot be used. Exceptions are not affected. The previous settings are restored at the
    end. This module imports no large library, so that large ones can be imported within the context.

    Args:
        tell: receives the text of each warning; None shows it as Python shows warnings.
    """
    import torch
    from transformers.utils import logging as transformers_logging

    datasets: Any = None
    with suppress(ImportError):  # the extra kasatune[train] installs it
        datasets = import_module("datasets")
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    dataset_bars = datasets is not None and not datasets.are_progress_bars_disabled()
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if datasets is not None:
        datasets.disable_progress_bars()
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with own_warnings(tell):
            if not torch.accelerator.is_available():
                os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed, imported by accelerate, looks for a GPU
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
        if datasets is not None and dataset_bars:
            datasets.enable_progress_bars()
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def own_warnings(tell: Callable[[str], None] | None) -> Generator[None]:
    """Pass on the warnings of kasatune, and those of others that it rephrases, each once; drop the rest.

    Args:
        tell: see `quiet`.
    """
    seen: set[str] = set()
    show = warnings.showwarning

    def show_once(message: Warning | str, category: type[Warning], *place: Any, **further: Any) -> None:
        text = _rephrased(str(message))
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
        warnings.showwarning = show_once
        yield


def _rephrased(message: str) -> str | None:
    """A library's warning in words for the user; None if it is noise."""
    for wording in _NOT_DETERMINISTIC:
        if match := wording.match(message):
            _warned_of[match["operation"]] = None
            return (
                f"{match['operation']} is not deterministic on this device: "
                "a repeated run may differ in its last digits"
            )
    match = _NO_GPU.match(message)
    return f"no GPU is used: {match['reason'].strip()}" if match else None


def _is_ours(frame: Any) -> bool:
    """Whether kasatune's code issued the warning; the file name in a warning is often that of the caller."""
    while frame is not None and frame.f_globals.get("__name__") == "warnings":
        frame = frame.f_back
    return frame is not None and str(frame.f_globals.get("__name__", "")).partition(".")[0] == "kasatune"
