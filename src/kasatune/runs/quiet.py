from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# The tokenizers library warns on standard error when a process that has tokenized is forked.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

_LOGGERS = (
    *("peft", "accelerate", "datasets", "huggingface_hub", "torchao", "bitsandbytes"),
    *("torch.utils._pytree", "torch.distributed.elastic.multiprocessing.redirects"),
)


@contextmanager
def quiet(tell: Callable[[str], None] | None = None) -> Iterator[None]:
    """Keep the progress bars, reports and warnings of other libraries off the terminal.

    Warnings of kasatune itself are passed on, each once; errors are raised as ever. Settings are put back at the end.
    The module is light: importing the heavy ones within this context keeps what they say at import off the terminal.

    Args:
        tell: receives the text of a warning; None leaves it to Python's own way of showing warnings.
    """
    import datasets
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
        if str(message) in seen or not _is_ours(sys._getframe(1)):
            return
        seen.add(str(message))
        if tell is None:
            show(message, category, *place, **further)
        else:
            tell(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = passed_on
        yield


def _is_ours(frame: Any) -> bool:
    """Whether the code that warned is kasatune's; a warning's own file name is often that of its caller."""
    while frame is not None and frame.f_globals.get("__name__") == "warnings":
        frame = frame.f_back
    return frame is not None and str(frame.f_globals.get("__name__", "")).partition(".")[0] == "kasatune"
