"""The files of a merged checkpoint besides its weights: configuration, tokenizer, chat template and licence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kasatune.adapter_tools.resolve import Source, local_base, read_config
from kasatune.adapter_tools.tokenizer import NAMED_TEMPLATES, TOKENIZER_CONFIG, copy_saved_tokenizer, load_tokenizer
from kasatune.adapters.certificate import CERTIFICATE
from kasatune.errors import ModelError
from kasatune.io.library_noise import quiet
from kasatune.io.model_location import ModelLocation
from kasatune.models.load import read_tokenizer
from kasatune.models.padding import choose_padding_token, counts_positions_by_padding, padding_side
from kasatune.models.saved_tokenizer import GENERATION_CONFIG
from kasatune.weights.checkpoint_files import is_index
from kasatune.weights.safetensors_reader import ModelCheckpoint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Besides its weights a checkpoint contains configuration, tokenizer and chat template: small text files.
_COPIED_SUFFIXES = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".py")
_COPIED_PREFIXES = ("LICENSE", "NOTICE", "USE_POLICY")
_NOT_COPIED = ("config.json", "adapter_config.json", CERTIFICATE, "trainer_state.json")


def write_other_files(
    out: Path, source: Source, base: ModelCheckpoint, *, untied: bool, vocabulary: int | None
) -> None:
    """Write configuration and tokenizer of a merged checkpoint, and copy the other small files of the base.

    Args:
        out: the new checkpoint.
        source: the adapter; a tokenizer that was saved with it replaces that of the base.
        base: the base.
        untied: whether weights that were tied no longer are.
        vocabulary: the number of tokens of a resized vocabulary; None if it is that of the base.

    Raises:
        ModelError: the tokenizer or the configuration of the base cannot be read.
    """
    location = local_base(source)
    _copy_files(location, out)
    if location.gguf_file is not None:
        _write_files_of_gguf(location, base, out)
    copy_saved_tokenizer(source.adapter, source.run, out)
    config = _config(location, base, untied=untied)
    if vocabulary is not None:
        for part in _text_parts(config):
            part["vocab_size"] = vocabulary
    _write(out / "config.json", config)  # which tokenizers are recognized by
    try:
        tokenizer = load_tokenizer(out, trust_remote_code=source.trust_remote_code)
    except ModelError:
        if _is_classifier(base):  # the position that it reads depends on the padding token
            raise
        return
    if tokenizer is not None:
        _set_padding(out, config, base, tokenizer, vocabulary)


def _copy_files(location: ModelLocation, out: Path) -> None:
    suffixes = _COPIED_SUFFIXES if location.gguf_file is None else ()  # the folder may hold other models
    for path in sorted(Path(location.path).iterdir()):
        copied = path.suffix in suffixes or path.name.startswith(_COPIED_PREFIXES)
        if path.is_file() and copied and path.name not in _NOT_COPIED and not is_index(path):
            shutil.copyfile(path, out / path.name)
        elif path.is_dir() and path.name == NAMED_TEMPLATES and suffixes:
            shutil.copytree(path, out / path.name)


def _write_files_of_gguf(location: ModelLocation, base: ModelCheckpoint, out: Path) -> None:
    """Write the tokenizer with its chat template, and the generation configuration, that a GGUF file holds."""
    with quiet():
        read_tokenizer(location, None, False).save_pretrained(out)
        generation: Any = getattr(base.model, "generation_config", None)
        if generation is not None:
            generation.save_pretrained(out)


def _config(location: ModelLocation, base: ModelCheckpoint, *, untied: bool) -> dict[str, Any]:
    """config.json: the base's, with the model's class, its labels, and whether embeddings are tied."""
    config, model = read_config(location), base.model
    config["architectures"] = [type(model).__name__]
    config.pop("transformers_weights", None)  # the merged files have the usual names, or an index
    if untied:
        config["tie_word_embeddings"] = False
    if _is_classifier(base):
        model_config: Any = model.config
        config["id2label"] = {str(index): name for index, name in model_config.id2label.items()}
        config["label2id"] = dict(model_config.label2id)
        if model_config.problem_type is not None:
            config["problem_type"] = model_config.problem_type
    return config


def _set_padding(
    out: Path,
    config: dict[str, Any],
    base: ModelCheckpoint,
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: int | None,
) -> None:
    """Write one padding token, the tokenizer's, into all configurations, as `models.padding` uses it in training."""
    changes: dict[str, Any] = {}
    has_own = tokenizer.pad_token is not None
    pad = choose_padding_token(tokenizer)
    model: Any = base.model
    embeddings = model.get_input_embeddings()
    if pad is None or pad >= (vocabulary or embeddings.weight.shape[0]):
        return
    if not has_own:
        changes["pad_token"] = tokenizer.pad_token
    if _is_classifier(base):
        side = padding_side(model, tokenizer)
        if side != tokenizer.padding_side:
            changes["padding_side"] = side
    if changes:
        _edit(out / TOKENIZER_CONFIG, changes)
    if counts_positions_by_padding(base.model):
        return
    for part in _text_parts(config):
        part["pad_token_id"] = pad
    _write(out / "config.json", config)
    path = out / GENERATION_CONFIG
    if path.is_file() and _read(path).get("pad_token_id") not in (None, pad):
        _edit(path, {"pad_token_id": pad})


def _text_parts(config: dict[str, Any]) -> list[dict[str, Any]]:
    """A configuration, and the part of it that describes the text model of a model for several kinds of input."""
    return [config, config["text_config"]] if isinstance(config.get("text_config"), dict) else [config]


def _is_classifier(base: ModelCheckpoint) -> bool:
    return "Classification" in type(base.model).__name__


def _edit(path: Path, changes: dict[str, Any]) -> None:
    _write(path, {**(_read(path) if path.is_file() else {}), **changes})


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise ModelError(f"{path} cannot be read as JSON ({fault}); copy the model again") from fault
    return content if isinstance(content, dict) else {}


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
