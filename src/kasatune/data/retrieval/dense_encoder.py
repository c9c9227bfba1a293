"""Dense retrieval: encode text as unit vectors with a transformers encoder and mean pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModel, AutoTokenizer

from kasatune.errors import ModelError
from kasatune.io.model_location import find_model

_BATCH, _TOKENS = 32, 512


class DenseEncoder:
    """Encodes texts as the mean of the last hidden states over their tokens, divided by its Euclidean norm.

    This is the pooling of most models of sentence-transformers. Texts beyond 512 tokens, or the model's own limit, are
    cut.

    Args:
        name: a hub id, a folder, or package:NAME (see `find_model`).

    Raises:
        ModelError: the encoder cannot be loaded.
    """

    def __init__(self, name: str) -> None:
        location = find_model(name)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(location.path)
            self._model: Any = AutoModel.from_pretrained(location.path, dtype=torch.float32).to(device).eval()
        except Exception as fault:  # transformers and the hub client raise dozens of unrelated types
            reason = (str(fault).strip().splitlines() or [type(fault).__name__])[0]
            raise ModelError(f"retriever: {name} cannot be loaded as an encoder: {reason}") from fault
        self._longest = min(_TOKENS, int(self._tokenizer.model_max_length))

    def __call__(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Unit vectors (texts, hidden size) in float32."""
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        rows: dict[int, npt.NDArray[np.float32]] = {}
        for start in range(0, len(order), _BATCH):
            indices = order[start : start + _BATCH]
            batch = self._tokenizer(
                [texts[index] for index in indices],
                padding=True,
                truncation=True,
                max_length=self._longest,
                return_tensors="pt",
            ).to(self._model.device)
            with torch.inference_mode():
                hidden = self._model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1)
            mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
            rows.update(zip(indices, torch.nn.functional.normalize(mean, dim=-1).cpu().numpy(), strict=True))
        return np.stack([rows[index] for index in range(len(texts))])
