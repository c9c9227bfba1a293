"""Measure forgetting: the base model's pretraining loss on unrelated text, before and after training.

For checkpoints that include their pretraining head, the measure is the masked or causal LM loss on plain sentences that
are part of the package. Encoders without such a head have no loss; for them the measure is the drift of the sentences'
features, which is a different quantity and has a different name.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from kasatune.evaluation.known_tokens import require_known_tokens
from kasatune.io.library_noise import quiet
from kasatune.models.load import Base, find_model
from kasatune.recipes.schema import ModelSection

_TEXT = Path(__file__).with_name("unrelated_sentences.txt")
_MASKED_SHARE = 0.15
_SEED = 20_250
_BATCH = 16
_LENGTH = 64
MASKED, CAUSAL, DRIFT = "masked_lm_loss", "causal_lm_loss", "feature_drift"


@dataclass(frozen=True)
class Untrained:
    """The base model on the unrelated sentences, before training.

    Attributes:
        kind: "masked_lm_loss", "causal_lm_loss" or "feature_drift".
        loss: pretraining loss of the base model; None without a pretraining head.
        features: mean last hidden state of each sentence, (sentences, hidden).
        batches: the tokenized sentences, with `labels` if there is a loss.
        head: the pretraining model with its body replaced by `_GivenStates`; None without one.
    """

    kind: str
    loss: float | None
    features: Tensor
    batches: list[dict[str, Tensor]]
    head: nn.Module | None


class _GivenStates(nn.Module):
    """A model body that returns hidden states computed elsewhere."""

    hidden: Tensor

    def forward(self, *_: Any, **__: Any) -> BaseModelOutputWithPastAndCrossAttentions:
        """Return `hidden` in the form of a model body's output."""
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=self.hidden)


def measure_untrained(section: ModelSection, base: Base) -> Untrained:
    """Measure the base model on the unrelated sentences, before training.

    Raises:
        ModelError: the model has no embedding for a token of the sentences.
    """
    kind, head = _pretraining_head(section)
    batches = _batches(base.tokenizer, kind)
    rows = [row for batch in batches for row in batch["input_ids"].tolist()]
    require_known_tokens(base.model, base.tokenizer, rows, section.name)
    loss, features = _run(base.model, batches, head)
    return Untrained(kind, loss, features, batches, head)


def retention(model: nn.Module, before: Untrained) -> dict[str, Any]:
    """{"kind", "before", "after"}: the losses of the base and the trained model, or 0 and the drift of the features.

    The drift is 1 - the mean cosine similarity of each sentence's features before and after training.
    """
    loss, features = _run(model, before.batches, before.head)
    if before.kind != DRIFT:
        return {"kind": before.kind, "before": before.loss, "after": loss}
    cosine = functional.cosine_similarity(before.features, features, dim=-1).mean()
    return {"kind": DRIFT, "before": 0.0, "after": max(0.0, 1.0 - float(cosine))}


def sentences() -> list[str]:
    """The unrelated sentences."""
    return _TEXT.read_text(encoding="utf-8").split("\n")[:-1]


def _pretraining_head(section: ModelSection) -> tuple[str, nn.Module | None]:
    folder = find_model(section.name)
    options: dict[str, Any] = {"revision": section.revision, "trust_remote_code": section.trust_remote_code}
    with quiet():
        config = AutoConfig.from_pretrained(folder, **options)
        names = " ".join(config.architectures or ())
        kind = MASKED if "MaskedLM" in names or "ForPreTraining" in names else CAUSAL
        if section.quantization != "none" or not any(
            part in names for part in ("MaskedLM", "ForPreTraining", "CausalLM", "LMHead")
        ):
            return DRIFT, None
        family = AutoModelForMaskedLM if kind == MASKED else AutoModelForCausalLM
        loaded: Any = family.from_pretrained(folder, output_loading_info=True, dtype=torch.float32, **options)
    model, report = loaded
    if report["missing_keys"]:
        return DRIFT, None
    setattr(model, model.base_model_prefix, _GivenStates())
    return kind, model.eval()


def _batches(tokenizer: PreTrainedTokenizerBase, kind: str) -> list[dict[str, Tensor]]:
    texts = sentences()
    generator = torch.Generator().manual_seed(_SEED)
    batches = []
    for start in range(0, len(texts), _BATCH):
        batch = dict(
            tokenizer(
                texts[start : start + _BATCH], padding=True, truncation=True, max_length=_LENGTH, return_tensors="pt"
            )
        )
        ids, mask = batch["input_ids"], batch["attention_mask"].bool()
        if kind == CAUSAL:
            batch["labels"] = ids.masked_fill(~mask, -100)
        elif kind == MASKED:
            special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
            masked = (torch.rand(ids.shape, generator=generator) < _MASKED_SHARE) & mask & ~special
            batch["labels"] = ids.masked_fill(~masked, -100)
            batch["input_ids"] = ids.masked_fill(masked, int(tokenizer.mask_token_id))  # pyright: ignore[reportArgumentType] - set for masked LMs
        batches.append(batch)
    return batches


def _run(model: nn.Module, batches: list[dict[str, Tensor]], head: nn.Module | None) -> tuple[float | None, Tensor]:
    """Pretraining loss averaged over its tokens, None without `head`, and the mean hidden state of each sentence."""
    device = next(model.parameters()).device
    total, tokens, features = 0.0, 0, []
    outputs: deque[Tensor] = deque(maxlen=1)
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    body: nn.Module = getattr(inner, inner.base_model_prefix)
    handle = body.register_forward_hook(lambda module, given, answer: outputs.append(answer[0]))
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for batch in batches:
            inputs = {key: value.to(device) for key, value in batch.items() if key != "labels"}
            model(**inputs)
            states = outputs[-1].float()
            length = inputs["input_ids"].shape[1]
            states = states[:, -length:]  # without virtual tokens that a method prepends
            mask = inputs["attention_mask"][..., None].float()
            features.append(((states * mask).sum(1) / mask.sum(1)).cpu())
            if head is not None:
                replaced: Any = getattr(head, str(head.base_model_prefix))
                replaced.hidden = states.cpu()
                logits = head(input_ids=batch["input_ids"]).logits.float()
                labels = batch["labels"]
                if "CausalLM" in type(head).__name__ or "LMHead" in type(head).__name__:
                    logits, labels = logits[:, :-1], labels[:, 1:]
                total += float(functional.cross_entropy(logits.transpose(1, 2), labels, reduction="sum"))
                tokens += int((labels != -100).sum())
    handle.remove()
    model.train(was_training)
    return (total / tokens if tokens else None), torch.cat(features)
