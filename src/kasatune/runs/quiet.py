from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# The tokenizers library warns on standard error when a process that has tokenized is forked.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

_LOGGERS = (
    *("peft", "accelerate", "datasets", "huggingface_hub", "torchao", "bitsandbytes"),
    *("torch.utils._pytree", "torch.distributed.elastic.multiprocessing.redirects"),
)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the progress bars, reports and warnings of transformers, peft and datasets off the terminal.

    A run tells what matters through its display; errors are raised as ever. Settings are put back at the end. The
    module is light: importing the heavy ones within this context keeps what they say at import off the terminal too.
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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
        if dataset_bars:
            datasets.enable_progress_bars()
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
