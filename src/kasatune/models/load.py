"""Load the base model of a recipe: locate it, check it, and load it with a new head or as a causal language model."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import try_to_load_from_cache
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils.hub import cached_file

from kasatune.errors import KasatuneError, ModelError
from kasatune.io.library_noise import quiet
from kasatune.io.model_location import ModelLocation, commit_of_snapshot, find_model
from kasatune.methods.shared.model_parts import head_name
from kasatune.models.gguf import fast_reading, make_plain, weight_options
from kasatune.models.padding import drop_unusable_padding, set_padding
from kasatune.models.quantization import quantization_config
from kasatune.weights.bitsandbytes_cpu import unpack_for_training_and_saving
from kasatune.weights.checkpoint_files import weight_files
from kasatune.weights.fingerprint import sampled_parameters_sha256
from kasatune.weights.usable_positions import usable_positions
from kasatune.wording import counted

if TYPE_CHECKING:
    from kasatune.recipes.schema import ModelSection

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_NOT_PROBABILITIES = ("layerdrop",)
_TEXT = "generation"


@dataclass(frozen=True)
class Pretrained:
    """Where the model of a recipe is, and its configuration; no weight is read.

    Attributes:
        section: the recipe's `model` section.
        location: a folder, or the model's ID on the hub.
        revision: the commit on the hub; None for a folder.
        config: the configuration in the checkpoint, unchanged.
    """

    section: ModelSection
    location: ModelLocation
    revision: str | None
    config: PreTrainedConfig


@dataclass(frozen=True)
class Base:
    """A base model that is ready for a method.

    Attributes:
        model: a model with a head of the task's size, or a causal language model; on the CPU, in evaluation mode.
        tokenizer: its tokenizer, with a padding token.
        new_modules: names of the modules that are trained and saved in full: the head, and any other module whose
            weights the checkpoint lacks; sorted, none inside another; empty for a language model.
        revision: the hub commit that it was loaded from; None for a folder.
        fingerprint: fingerprint of its weights without the new modules; see `sampled_parameters_sha256`.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    new_modules: tuple[str, ...]
    revision: str | None = None
    fingerprint: str = ""


def find_commit(location: ModelLocation, revision: str | None) -> str | None:
    """The commit that a revision of a model on the hub points to, or pointed to when it was cached; None for a folder.

    Raises:
        OSError: the model does not exist.
    """
    if location.is_local:
        return None
    if not isinstance(try_to_load_from_cache(location.path, _config_file(location), revision=revision), str):
        place = Path(location.path).absolute()
        warnings.warn(f"model.name: {location.path}: {place} is not a folder; it is looked up on the hub", stacklevel=2)
    return commit_of_snapshot(_downloaded(location, revision))


def download_gguf(location: ModelLocation, revision: str | None) -> ModelLocation:
    """The location of a GGUF file in the hub's cache, downloaded if it is not there; other locations unchanged.

    Raises:
        OSError: the model does not exist.
    """
    if location.gguf_file is None or location.is_local:
        return location
    file = Path(_downloaded(location, revision))
    return ModelLocation(str(file.parents[len(Path(location.gguf_file).parts) - 1]), location.gguf_file)


def _downloaded(location: ModelLocation, revision: str | None) -> str:
    return str(cached_file(location.path, _config_file(location), revision=revision))


def _config_file(location: ModelLocation) -> str:
    return location.gguf_file or "config.json"


def find_pretrained(section: ModelSection) -> Pretrained:
    """Locate the model of a recipe and read its configuration, for a GGUF file from its header.

    Raises:
        ModelError: the model does not exist or its configuration cannot be read.
        MissingExtraError: it is a GGUF file and the gguf package is not installed.
    """
    location = find_model(section.base_name)
    try:
        with quiet():
            revision = find_commit(location, section.revision)
            location = download_gguf(location, section.revision)
            config = read_config(location, revision or section.revision, section.trust_remote_code)
    except KasatuneError:
        raise
    except Exception as fault:  # transformers and the hub client raise dozens of unrelated exception types
        raise ModelError(
            f"model.name: {section.base_name} cannot be loaded: {reason_and_remedy(fault, location.path)}"
        ) from fault
    return Pretrained(section, location, revision, config)


def read_config(location: ModelLocation, revision: str | None, trust_remote_code: bool) -> PreTrainedConfig:
    """The configuration of a model, for a GGUF file from its header."""
    with fast_reading(location):
        config = AutoConfig.from_pretrained(
            location.path, revision=revision, trust_remote_code=trust_remote_code, **location.options
        )
    if location.gguf_file is not None:
        config.name_or_path = location.path  # not the title in the file
    return config


def read_tokenizer(location: ModelLocation, revision: str | None, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, for a GGUF file on this machine from its header."""
    if location.gguf_file is None:
        return AutoTokenizer.from_pretrained(location.path, revision=revision, trust_remote_code=trust_remote_code)
    with fast_reading(location), tempfile.TemporaryDirectory(prefix="kasatune-") as empty:
        # transformers would mix in the tokenizer files of the folder.
        tokenizer = AutoTokenizer.from_pretrained(empty, **location.options)
    tokenizer.name_or_path = location.path
    return tokenizer


def load_base(
    section: ModelSection,
    *,
    kind: str,
    label_names: Sequence[str] | None,
    seed: int,
    max_length: int,
    float32_head: bool = False,
    pretrained: Pretrained | None = None,
) -> Base:
    """Load the model of a recipe, with a new head for its task, or as a language model.

    Args:
        section: the recipe's `model` section.
        kind: "classification", "regression" or "generation".
        label_names: labels of a classification task.
        seed: seed of the new weights.
        max_length: tokens of the longest input, which the model must accept.
        float32_head: keep new modules in float32 whatever the model's dtype, for mixed precision.
        pretrained: the result of `find_pretrained`; None to locate the model now.

    Raises:
        ModelError: the model is missing, damaged, of the wrong architecture, or too short for `max_length`.
    """
    pretrained = find_pretrained(section) if pretrained is None else pretrained
    location, revision, config = pretrained.location, pretrained.revision, copy.deepcopy(pretrained.config)
    if location.is_local and location.gguf_file is None:
        weight_files(Path(location.path))
    # Tokenizer, weights and remote code are read from the same commit.
    source = (revision or section.revision, section.trust_remote_code)
    options = weight_options(location, section.quantization)
    try:
        with quiet(), fast_reading(location):
            config._commit_hash = revision  # find_checkpoint looks the files up by it
            drop_unusable_padding(config)
            _set_task(section.name, config, kind, label_names)
            _set_dropout(config, section.dropout)
            if section.quantization != "none":
                options["quantization_config"] = quantization_config(
                    section.quantization, keep=_outside_the_body(config, section, kind), dtype=_DTYPES[section.dtype]
                )
            set_seed(seed)
            model, report = model_family(kind).from_pretrained(
                location.path,
                config=config,
                dtype=_DTYPES[section.dtype],
                ignore_mismatched_sizes=kind != _TEXT,
                output_loading_info=True,
                revision=source[0],
                trust_remote_code=source[1],
                **options,
            )
            make_plain(model)
    except KasatuneError:
        raise
    except Exception as fault:  # transformers, the hub client and safetensors raise dozens of unrelated exception types
        raise ModelError(
            f"model.name: {section.base_name} cannot be loaded: {reason_and_remedy(fault, location.path)}"
        ) from fault
    tokenizer = load_tokenizer(pretrained, model, kind=kind, max_length=max_length)
    unpack_for_training_and_saving(model)
    if kind == _TEXT:
        _require_complete(section.name, model, report)
        return Base(model.eval(), tokenizer, (), revision, sampled_parameters_sha256(model))
    new_modules = _new_modules(section.name, model, report)
    fingerprint = sampled_parameters_sha256(model, new_modules)
    if float32_head:
        for name in new_modules:
            model.get_submodule(name).float()
    return Base(model.eval(), tokenizer, new_modules, revision, fingerprint)


def load_tokenizer(
    pretrained: Pretrained, model: PreTrainedModel, *, kind: str, max_length: int
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, with a padding token, which `model` gets too.

    Args:
        pretrained: the recipe's model.
        model: the model, whose weights may be on the meta device.
        kind: "classification", "regression" or "generation".
        max_length: tokens of the longest input, which model and tokenizer must accept.

    Raises:
        ModelError: the tokenizer is missing or damaged, too short for `max_length`, or lacks a token that the task
            needs.
    """
    section, location = pretrained.section, pretrained.location
    try:
        with quiet():
            tokenizer = read_tokenizer(location, pretrained.revision or section.revision, section.trust_remote_code)
    except Exception as fault:  # transformers and the hub client raise dozens of unrelated exception types
        raise ModelError(
            f"model.name: {section.base_name} cannot be loaded: {reason_and_remedy(fault, location.path)}"
        ) from fault
    _check_vocabulary(section.name, tokenizer)
    _check_length(section.name, model, tokenizer, max_length)
    if kind == _TEXT:
        _require_end(section.name, tokenizer)
    set_padding(section.name, model, tokenizer, classifier=kind != _TEXT)
    return tokenizer


def model_family(kind: str) -> Any:
    """The Auto class of transformers for a kind of task."""
    return AutoModelForCausalLM if kind == _TEXT else AutoModelForSequenceClassification


def require_causal(name: str, config: PreTrainedConfig) -> None:
    """Reject a model that is not a causal language model.

    Raises:
        ModelError: it is an encoder or an encoder-decoder.
    """
    masked = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
    if config.is_encoder_decoder or masked:
        raise ModelError(
            f"model.name: {name} has the type {config.model_type!r}, which is not a causal language model; give one,"
            " such as GPT-2 or Llama, to generate text"
        )


def _outside_the_body(config: PreTrainedConfig, section: ModelSection, kind: str) -> list[str]:
    """Names of the modules that must not be quantized: the head, and a pooler."""
    with torch.device("meta"):
        model = model_family(kind).from_config(config, trust_remote_code=section.trust_remote_code)
    if kind == _TEXT:
        output = model.get_output_embeddings()
        return [name for name, module in model.named_modules() if module is output]
    heads = [name for name, _ in model.named_children() if name != model.base_model_prefix]
    return heads + [name for name, _ in model.named_modules() if name.rpartition(".")[2] == "pooler"]


def _set_task(name: str, config: PreTrainedConfig, kind: str, label_names: Sequence[str] | None) -> None:
    if kind == _TEXT:
        require_causal(name, config)
        return
    if kind == "regression":
        config.num_labels = 1
        config.problem_type = "regression"
        return
    names = list(label_names or ())
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}
    config.problem_type = "single_label_classification"


def _set_dropout(config: PreTrainedConfig, dropout: float | None) -> None:
    """Set all dropout probabilities of a configuration; None keeps those of the model."""
    if dropout is None:
        return
    for name, value in config.to_dict().items():
        is_probability = value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
        if ("dropout" in name or name.endswith("pdrop")) and name not in _NOT_PROBABILITIES and is_probability:
            setattr(config, name, float(dropout))


def _check_vocabulary(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Reject a tokenizer with special tokens only, which transformers returns if tokenizer files are missing."""
    if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
        raise ModelError(
            f"model.name: the tokenizer of {name} has only special tokens: one of its files is missing;"
            " copy the model again"
        )


def _check_length(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    limits = [usable_positions(model), tokenizer.model_max_length]
    limits = [limit for limit in limits if isinstance(limit, int) and limit > 0]
    if limits and max_length > min(limits):
        raise ModelError(
            f"task.max_length: {counted(max_length, 'token')}, but {name} takes at most {min(limits)}; lower it"
        )


def _require_end(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"model.name: the tokenizer of {name} has no EOS token, so the model cannot learn where to "
            "stop; add one to its tokenizer_config.json"
        )


def _new_modules(name: str, model: PreTrainedModel, report: dict[str, Any]) -> tuple[str, ...]:
    """The head, and the outermost modules all of whose weights the checkpoint lacks."""
    mismatched = {entry[0] if isinstance(entry, (tuple, list)) else entry for entry in report["mismatched_keys"]}
    new = (set(report["missing_keys"]) | mismatched) & {key for key, _ in model.named_parameters()}
    body = f"{model.base_model_prefix}."
    lacking = sorted(key for key in new if key.startswith(body) and "pooler" not in key)
    if lacking:
        raise ModelError(
            f"model.name: {name} is not a {type(model).__name__}: its file lacks "
            f"{counted(len(lacking), 'weight')} of the body, "
            f"e.g. {lacking[0]}; give another model or copy it again"
        )
    modules = {head_name(model)}
    for key in sorted(new):
        module = key.rpartition(".")[0]
        while "." in module and _all_new(model, module.rpartition(".")[0], new):
            module = module.rpartition(".")[0]
        modules.add(module)
    return tuple(sorted(m for m in modules if not any(m.startswith(f"{other}.") for other in modules)))


def _require_complete(name: str, model: PreTrainedModel, report: dict[str, Any]) -> None:
    lacking = sorted(set(report["missing_keys"]) & {key for key, _ in model.named_parameters()})
    if lacking:
        raise ModelError(
            f"model.name: {name} is not a {type(model).__name__}: its file lacks {counted(len(lacking), 'weight')}, "
            f"e.g. {lacking[0]}; give another model or copy it again"
        )


def _all_new(model: nn.Module, module: str, new: set[str]) -> bool:
    return all(f"{module}.{name}" in new for name, _ in model.get_submodule(module).named_parameters())


def reason_and_remedy(fault: Exception, folder: str) -> str:
    """The reason why transformers or the hub client could not load a model and a remedy, in one line.

    Args:
        fault: the exception that they raised.
        folder: the folder of the model, or its ID on the hub.
    """
    lines = [line.strip().rstrip(".") for line in str(fault).splitlines() if line.strip()]
    if "trust_remote_code" in str(fault):
        return (
            "it needs code from its repository, which is not run by default; choose another model, or review that "
            "code and set model.trust_remote_code: true"
        )
    reason = lines[0] if lines else type(fault).__name__
    if Path(folder).exists():
        return f"{reason}; copy it again"
    place = Path(folder).absolute()
    return f"{place} is not a folder, and on the hub: {reason}; check the path, the name and the network"
