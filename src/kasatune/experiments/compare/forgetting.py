"""Measure forgetting: the model's loss on unrelated text before training, after every epoch and at the end.

A causal language model has its loss per token. An encoder with the head of its pretraining has the masked-LM loss of
masked tokens. An encoder without such a head has no loss; for it the measure is the drift of its features of the text,
which is a different quantity and has a different name.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from kasatune.evaluation.batches import evaluation_mode
from kasatune.evaluation.causal_loss import row_losses
from kasatune.evaluation.known_tokens import require_known_tokens
from kasatune.evaluation.unrelated_text import WINDOW, UnrelatedText, windows
from kasatune.io.atomic import write_json
from kasatune.io.library_noise import quiet
from kasatune.io.model_location import find_model
from kasatune.methods.shared.trained_parameters import TrainedState
from kasatune.models.gguf import fast_reading, make_plain, weight_options
from kasatune.models.load import Base, download_gguf, read_config
from kasatune.recipes.schema import ModelSection

Floats = npt.NDArray[np.float64]

FORGETTING = "forgetting"
"""The endpoint: loss on unrelated text after training minus before, in nats per token; or the drift of features."""
RETENTION_FILE = "retention.json"
MASKED, CAUSAL, DRIFT = "masked_lm_loss", "causal_lm_loss", "feature_drift"
_MASKED_SHARE = 0.15
_SEED = 20_250
_BATCH = 16


@dataclass(frozen=True)
class Untrained:
    """The base model on the unrelated text, before training.

    Attributes:
        kind: "masked_lm_loss", "causal_lm_loss" or "feature_drift".
        losses: loss of each piece of text, a mean over its tokens; None without a pretraining head.
        features: mean last hidden state of each piece, (pieces, hidden).
        batches: the pieces as batches of equal length, with `labels` if there is a loss.
        head: the pretraining model with its body replaced by `_GivenStates`; None if the model itself gives logits of
            tokens, or if there is no loss.
        text: the origin of the text.
    """

    kind: str
    losses: Floats | None
    features: Tensor
    batches: list[dict[str, Tensor]]
    head: nn.Module | None
    text: UnrelatedText

    @property
    def tokens(self) -> int:
        """Number of tokens of the text."""
        return sum(batch["input_ids"].numel() for batch in self.batches)

    def first_batch(self) -> Untrained:
        """The first batch of pieces alone."""
        pieces = len(self.batches[0]["input_ids"])
        losses = None if self.losses is None else self.losses[:pieces]
        return replace(self, losses=losses, features=self.features[:pieces], batches=self.batches[:1])


@dataclass(frozen=True)
class Measured:
    """The unrelated text under a model after an evaluation in training.

    Attributes:
        epoch: of the evaluation.
        values: see `measure_trained`.
        state: the trained parameters of the model.
    """

    epoch: float
    values: Floats
    state: TrainedState

    def valid_for(self, model: nn.Module, before: Untrained, precision: str) -> bool:
        """Whether measuring `model` would give the same values, because it is the model that was measured.

        Every trained parameter must be equal bit for bit, and so must the values of the first batch, which depend on
        all frozen weights.
        """
        if not self.state.is_held_by(model):
            return False
        first = measure_trained(model, before.first_batch(), precision)
        return np.array_equal(first, self.values[: len(first)])


@dataclass(frozen=True)
class Retention:
    """The content of retention.json.

    Attributes:
        kind: see `Untrained`.
        before: value of the base for each piece of text; zeros for a drift.
        after: the same of the trained model.
        epochs: (epoch, mean over the pieces) after every evaluation in training.
    """

    kind: str
    before: Floats
    after: Floats
    epochs: list[tuple[float, float]]

    @property
    def rise(self) -> Floats:
        """What was forgotten of each piece of text: after - before."""
        return self.after - self.before


class _GivenStates(nn.Module):
    """A model body that returns hidden states computed elsewhere."""

    hidden: Tensor

    def forward(self, *_: Any, **__: Any) -> BaseModelOutputWithPastAndCrossAttentions:
        """Return `hidden` in the form of a model body's output."""
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=self.hidden)


def measure_untrained(
    section: ModelSection, base: Base, text: UnrelatedText, *, generates: bool = False, precision: str = "float32"
) -> Untrained:
    """Measure the base model on the unrelated text, before training.

    Args:
        section: the recipe's section `model`.
        base: the base model.
        text: the unrelated text.
        generates: whether the model is a causal language model with its head, as for tasks that generate text.
        precision: "float32", "bfloat16" or "float16" (autocast).

    Raises:
        InputError: the text is missing or too short.
        ModelError: the model has no embedding for a token of the text.
    """
    kind, head = (CAUSAL, None) if generates else _pretraining_head(section)
    positions = getattr(base.model.config, "max_position_embeddings", None)
    length = min(WINDOW, positions // 2) if isinstance(positions, int) and positions > 1 else WINDOW
    pieces = windows(base.tokenizer, text.documents(), text.tokens, length)
    require_known_tokens(base.model, base.tokenizer, pieces, section.base_name)
    batches = _batches(base.tokenizer, pieces, kind)
    losses, features = _run(base.model, batches, head, precision)
    return Untrained(kind, losses, features, batches, head, text)


def measure_trained(model: nn.Module, before: Untrained, precision: str = "float32") -> Floats:
    """The loss of each piece of text, or 1 - the cosine of its features before and after training."""
    losses, features = _run(model, before.batches, before.head, precision)
    if losses is not None:
        return losses
    cosine = functional.cosine_similarity(before.features.double(), features.double(), dim=-1)
    return np.maximum(0.0, 1.0 - cosine.numpy())


def write_retention(
    folder: Path, before: Untrained, after: Floats, epochs: Sequence[tuple[float, float]]
) -> dict[str, Any]:
    """Write retention.json into the folder of a run, and return its summary for metrics.json.

    Returns:
        {"kind", "before", "after", "text", "tokens"}: means over the text, its origin and its number of tokens.
    """
    base = np.zeros(len(after)) if before.losses is None else before.losses
    summary = {"kind": before.kind, "before": float(base.mean()), "after": float(after.mean())}
    summary |= {"text": before.text.source, "tokens": before.tokens}
    content = {
        "schema_version": 1,
        **summary,
        "text_sha256": before.text.sha256,
        "epochs": [list(point) for point in epochs],
        "pieces": {"before": base.tolist(), "after": after.tolist()},
    }
    write_json(folder / RETENTION_FILE, content, indent=None)
    return summary


def read_retention(folder: Path) -> Retention | None:
    """Read retention.json of a run; None if there is none or it is damaged."""
    try:
        content = json.loads((folder / RETENTION_FILE).read_text(encoding="utf-8"))
        pieces = content["pieces"]
        before, after = np.asarray(pieces["before"], dtype=float), np.asarray(pieces["after"], dtype=float)
        epochs = [(float(epoch), float(value)) for epoch, value in content["epochs"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Retention(str(content["kind"]), before, after, epochs) if before.shape == after.shape else None


def _pretraining_head(section: ModelSection) -> tuple[str, nn.Module | None]:
    location = download_gguf(find_model(section.base_name), section.revision)
    options: dict[str, Any] = {"revision": section.revision, "trust_remote_code": section.trust_remote_code}
    with quiet(), fast_reading(location):
        config = read_config(location, **options)
        names = " ".join(config.architectures or (["CausalLM"] if location.gguf_file else ()))
        kind = MASKED if "MaskedLM" in names or "ForPreTraining" in names else CAUSAL
        if section.quantization != "none" or not any(
            part in names for part in ("MaskedLM", "ForPreTraining", "CausalLM", "LMHead")
        ):
            return DRIFT, None
        family = AutoModelForMaskedLM if kind == MASKED else AutoModelForCausalLM
        options |= weight_options(location)
        loaded: Any = family.from_pretrained(location.path, output_loading_info=True, dtype=torch.float32, **options)
    model, report = loaded
    make_plain(model)
    if report["missing_keys"]:
        return DRIFT, None
    setattr(model, model.base_model_prefix, _GivenStates())
    return kind, model.eval()


def _batches(tokenizer: PreTrainedTokenizerBase, pieces: list[list[int]], kind: str) -> list[dict[str, Tensor]]:
    """The pieces in batches; for a masked-LM loss, as many tokens of each piece are masked."""
    generator = torch.Generator().manual_seed(_SEED)
    special = torch.tensor([token for token in tokenizer.all_special_ids if token != tokenizer.unk_token_id])
    masked = max(1, round(_MASKED_SHARE * len(pieces[0])))
    batches = []
    for start in range(0, len(pieces), _BATCH):
        ids = torch.tensor(pieces[start : start + _BATCH])
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if kind == CAUSAL:
            batch["labels"] = ids.clone()
        elif kind == MASKED:
            order = torch.rand(ids.shape, generator=generator).masked_fill(torch.isin(ids, special), 2.0)
            chosen = torch.zeros_like(ids, dtype=torch.bool).scatter(1, order.argsort(dim=1)[:, :masked], value=True)
            batch["labels"] = ids.masked_fill(~chosen, -100)
            batch["input_ids"] = ids.masked_fill(chosen, int(tokenizer.mask_token_id))  # pyright: ignore[reportArgumentType] - set for masked LMs
        batches.append(batch)
    return batches


def _run(
    model: nn.Module, batches: list[dict[str, Tensor]], head: nn.Module | None, precision: str
) -> tuple[Floats | None, Tensor]:
    """The mean loss of each piece of text, None without labels, and its mean hidden state."""
    losses, features = [], []
    outputs: deque[Tensor] = deque(maxlen=1)
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    body: nn.Module = getattr(inner, inner.base_model_prefix)
    handle = body.register_forward_hook(lambda module, given, answer: outputs.append(answer[0]))
    try:
        with evaluation_mode(model, precision) as device:
            for batch in batches:
                inputs = {key: value.to(device) for key, value in batch.items() if key != "labels"}
                logits = model(**inputs).logits
                length = inputs["input_ids"].shape[1]
                states = outputs[-1].float()[:, -length:]  # without virtual tokens that a method prepends
                features.append(states.mean(1).cpu())
                if "labels" in batch:
                    losses.append(_losses(head, states, logits, batch))
    finally:
        handle.remove()
    return (torch.cat(losses).double().numpy() if losses else None), torch.cat(features)


def _losses(head: nn.Module | None, states: Tensor, logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """The mean loss of each piece of a batch, on the CPU in float32."""
    labels = batch["labels"]
    if head is not None:
        replaced: Any = getattr(head, str(head.base_model_prefix))
        replaced.hidden = states.cpu()
        logits = head(input_ids=batch["input_ids"]).logits
        if "CausalLM" not in type(head).__name__ and "LMHead" not in type(head).__name__:
            summed = functional.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none").sum(1)
            return summed / (labels != -100).sum(1)
    sums = row_losses(logits[:, -labels.shape[1] :], labels.to(logits.device))
    return sums.cpu() / (labels[:, 1:] != -100).sum(1)
