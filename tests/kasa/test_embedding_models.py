"""KaSA in sentence-transformers: train through `add_adapter`, save, load, export, merge."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from kasatune import KasaConfig, export_adapter
from tests.toys import BAD, GOOD

datasets = pytest.importorskip("datasets", reason="needs the extra kasatune[sft]")
REASON = "needs sentence-transformers 6: pip install sentence-transformers"
st = pytest.importorskip("sentence_transformers", reason=REASON)
losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses", reason=REASON)

RATE, BETA = 0.1, 0.5
TEXTS = [f"{good} {bad}" for good, bad in zip(GOOD[:4], BAD[:4], strict=True)]


def embedder(folder):
    return st.SentenceTransformer(str(folder), device="cpu")


def vectors(model):
    return model.encode(TEXTS, convert_to_tensor=True)


def trained(bert, folder, penalty):
    """A model after one step of gradient descent."""
    model = embedder(bert)
    torch.manual_seed(3)
    config = KasaConfig(r=3, lora_alpha=6, beta=BETA, gamma=0.0, penalty=penalty, target_modules=["query", "value"])
    model.add_adapter(config)
    start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    arguments = st.SentenceTransformerTrainingArguments(
        str(folder),
        max_steps=1,
        per_device_train_batch_size=4,
        optim="sgd",
        learning_rate=RATE,
        lr_scheduler_type="constant",
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    rows = datasets.Dataset.from_dict({"anchor": TEXTS, "positive": TEXTS[::-1]})
    loss = losses.MultipleNegativesRankingLoss(model)
    st.SentenceTransformerTrainer(model=model, args=arguments, train_dataset=rows, loss=loss).train()
    return model.eval(), start


def test_an_embedding_model_is_trained_with_the_penalty_saved_exported_and_merged(bert, tmp_path):
    model, start = trained(bert, tmp_path, "step")
    assert start and all(".kasa_" in name for name in start)
    after = dict(model.named_parameters())
    for name, before in start.items():
        if "kasa_sigma" in name:  # at B = 0 the task has no gradient for sigma
            torch.testing.assert_close(after[name], before * (1 - 2 * RATE * BETA))
    assert any(p.abs().max() > 0 for name, p in after.items() if "kasa_B" in name)
    tuned = vectors(model)

    model.save_pretrained(str(tmp_path / "kasa"))
    assert all(".kasa_" in name for name in load_file(tmp_path / "kasa" / "adapter_model.safetensors"))
    torch.testing.assert_close(vectors(embedder(tmp_path / "kasa")), tuned, rtol=0, atol=1e-6)

    export_adapter(tmp_path / "kasa", tmp_path / "lora", to="lora")
    with_lora = embedder(bert)
    with_lora.load_adapter(str(tmp_path / "lora"))
    torch.testing.assert_close(vectors(with_lora), tuned, rtol=0, atol=1e-5)

    merged = embedder(bert)
    merged[0].model = PeftModel.from_pretrained(merged[0].model, tmp_path / "kasa").merge_and_unload()
    merged.save_pretrained(str(tmp_path / "merged"))
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    torch.testing.assert_close(vectors(embedder(tmp_path / "merged")), tuned, rtol=0, atol=1e-5)

    base = vectors(embedder(bert))
    assert (tuned - base).abs().max() > 1e-3
    model.disable_adapters()
    torch.testing.assert_close(vectors(model), base, rtol=0, atol=0)
