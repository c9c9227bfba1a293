"""Resolve a path argument, a run or an adapter, to the adapter and its base model."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kasatune.adapter_tools.tokenizer import load_tokenizer, saved_tokenizer
from kasatune.errors import InputError, ModelError
from kasatune.io.library_noise import quiet
from kasatune.io.model_location import ADAPTER_CONFIG, ModelLocation, find_adapter_folder, find_model
from kasatune.io.run_layout import ADAPTER, NATIVE, RECIPE
from kasatune.models.gguf import fast_reading, make_plain, weight_options
from kasatune.models.load import download_gguf, load_base, reason_and_remedy
from kasatune.models.load import read_config as read_model_config
from kasatune.models.moved_base import base_errors
from kasatune.models.padding import drop_unusable_padding, set_padding
from kasatune.runs.directory import read_recipe
from kasatune.runs.metrics import read_metrics
from kasatune.weights.checkpoint_files import weight_files
from kasatune.weights.safetensors_reader import Checkpoint, ModelCheckpoint

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

ADAPTER_FILE = ADAPTER_CONFIG
# Class of transformers' Auto family by PEFT's task type.
_AUTO_CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}


@dataclass(frozen=True)
class Source:
    """An adapter that a path argument resolves to.

    Attributes:
        given: the directory.
        adapter: the adapter in it: the native one of a run that has one, or `given` itself.
        run: the run directory; None for an adapter alone.
        base: the base that the user named; None to use the one of the recipe or the adapter.
    """

    given: Path
    adapter: Path
    run: Path | None
    base: str | None

    @cached_property
    def config(self) -> dict[str, Any]:
        """adapter_config.json."""
        from kasatune.adapters.adapter_files import read_json

        return read_json(self.adapter, ADAPTER_FILE)

    @property
    def base_name(self) -> str | None:
        """The name of the base from the user, the recipe or the adapter, in this order; None if none names it."""
        if self.base is not None:
            return self.base
        if self.run is not None:
            return read_recipe(self.run).model.base_name
        name = self.config.get("base_model_name_or_path")
        return name if isinstance(name, str) and name else None

    @property
    def revision(self) -> str | None:
        """The revision of the base on the hub, unless the user named another base."""
        if self.base is not None:
            return None
        if self.run is not None:
            return read_recipe(self.run).model.revision
        revision = self.config.get("revision")
        return revision if isinstance(revision, str) else None

    @property
    def trust_remote_code(self) -> bool:
        """Whether the code of the base's repository may be executed: only if a recipe allows it."""
        return self.run is not None and read_recipe(self.run).model.trust_remote_code


def find_source(directory: Path, base: str | None = None) -> Source:
    """Resolve a run directory to its adapter; the directory of an adapter to itself.

    Raises:
        InputError: there is none.
    """
    run = directory if (directory / RECIPE).is_file() else None
    folder = find_adapter_folder(directory)
    if folder is not None:
        return Source(directory, folder, run, base)
    if run is not None:
        raise InputError(f"{directory}: the run has no adapter: it was not finished, or its method trains none")
    what = "holds no adapter" if directory.is_dir() else "no such directory"
    raise InputError(f"{directory}: {what}; give a directory that `kasatune train` or save_pretrained wrote")


def has_adapter(run_dir: Path) -> bool:
    """Whether a run directory holds an adapter, native or stock."""
    return any((run_dir / name / ADAPTER_FILE).is_file() for name in (NATIVE, ADAPTER))


def require_convertible(source: Source) -> None:
    """Check the settings of the adapter before its base is loaded; see `check_settings`.

    Raises:
        AdapterError: a setting has no equivalent in a merged model or another format.
    """
    from kasatune.adapters.load import read_checked
    from kasatune.adapters.lora_settings import check_settings

    header, kind, _ = read_checked(source.adapter)
    check_settings(header.config, kind)


def require_base_name(source: Source) -> str:
    """The name of the base.

    Raises:
        InputError: it is unknown.
    """
    if source.base_name is None:
        raise InputError(f"{source.given}: the adapter does not name its base model; name it with --base MODEL")
    return source.base_name


def is_base_local(source: Source) -> bool:
    """Whether the base is on this machine: a folder, an installed package, or in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    name = source.base_name
    if name is None:
        return False
    try:
        location = find_model(name)
        if location.is_local:
            return True
        file = location.gguf_file or "config.json"
        return isinstance(try_to_load_from_cache(location.path, file, revision=source.revision), str)
    except ValueError:  # no such folder, or no name of a model on the hub
        return False


def load_base_model(source: Source, *, quantized: bool = True) -> PreTrainedModel:
    """The untouched base, with a head of the adapter's size, in the dtype of the recipe or of its checkpoint.

    Args:
        source: the resolved adapter.
        quantized: False loads the base of a run in full precision, whatever its recipe says.

    Raises:
        InputError: the name of the base is unknown.
        ModelError: it cannot be loaded.
    """
    name = require_base_name(source)
    with base_errors(source.base, _named_by(source)):
        return _load_base_model(source, name, quantized=quantized)


def _load_base_model(source: Source, name: str, *, quantized: bool) -> PreTrainedModel:
    if source.run is not None:
        recipe, metrics = read_recipe(source.run), read_metrics(source.run)
        options = {} if quantized else {"quantization": "none"}
        changes = {"name": name, "gguf_file": None, "revision": source.revision, **options}
        section = recipe.model.model_copy(update=changes)
        labels = metrics.get("label_names")
        return load_base(
            section,
            kind=metrics["kind"],
            label_names=labels,
            seed=recipe.training.seed,
            max_length=recipe.task.max_length,
            float32_head=recipe.training.precision != "float32",
        ).model
    location = find_model(name)
    if location.is_local and location.gguf_file is None:
        weight_files(Path(location.path))
    options: dict[str, Any] = {"dtype": "auto", "revision": source.revision, "ignore_mismatched_sizes": True}
    try:
        with quiet(), fast_reading(location):
            location = download_gguf(location, source.revision)
            config = load_config(source, location)
            model = model_class(source).from_pretrained(
                location.path, config=config, **options, **weight_options(location)
            )
            make_plain(model)
        _resize_vocabulary(source, model)
        if source.config.get("task_type") == "SEQ_CLS":
            tokenizer = load_tokenizer(saved_tokenizer(source.adapter, None) or location, revision=source.revision)
            if tokenizer is not None:
                set_padding(name, model, tokenizer, classifier=True)
        return model
    except InputError:
        raise
    except Exception as fault:  # transformers, the hub client and safetensors raise dozens of unrelated types
        raise ModelError(f"model.name: {name} cannot be loaded: {reason_and_remedy(fault, location.path)}") from fault


def _named_by(source: Source) -> str:
    """What names the base, unless the user does, for messages."""
    return "model.name" if source.run is not None else "the adapter's base_model_name_or_path"


def open_base(source: Source) -> ModelCheckpoint:
    """The checkpoint of the base; a model on the hub is downloaded.

    Names and shapes are in memory, values are read from safetensors files when they are needed. The weights of a GGUF
    file are dequantized and held in memory, in the dtype of the recipe.

    Raises:
        InputError: the name of the base is unknown.
        ModelError: it cannot be found, holds no weights, or transformers cannot build its model.
    """
    import torch

    location = local_base(source)
    folder = Path(location.path)
    if location.gguf_file is not None:
        model = load_base_model(source)
        return ModelCheckpoint(Checkpoint.of_model(folder, model), model)
    with build_errors(folder), quiet(), torch.device("meta"):
        config = load_config(source, location)
        kind = model_class(source)
        if hasattr(kind, "from_config"):
            model = kind.from_config(config, trust_remote_code=source.trust_remote_code)
        else:
            model = kind(config)
    return ModelCheckpoint(Checkpoint.open(folder), model)


@contextmanager
def build_errors(folder: Path) -> Generator[None]:
    """Raise ModelError for whatever stops transformers from building a model of the configuration in `folder`."""
    try:
        yield
    except Exception as fault:  # transformers raises many types for a configuration that it cannot use
        reason = (str(fault).strip().splitlines() or [type(fault).__name__])[0]
        raise ModelError(f"{folder}: no model can be built from its configuration: {reason}") from fault


def load_config(source: Source, location: ModelLocation) -> PreTrainedConfig:
    """The configuration of the base, with as many labels as the adapter's head has."""
    config = read_model_config(location, source.revision, source.trust_remote_code)
    drop_unusable_padding(config)
    if source.run is not None:
        metrics = read_metrics(source.run)
        names = metrics.get("label_names")
        if metrics["kind"] == "generation":
            return config
        if names:
            config.id2label, config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
        else:
            config.num_labels, config.problem_type = 1, "regression"
    elif source.config.get("task_type") in ("SEQ_CLS", "TOKEN_CLS"):
        labels = _head_rows(source)
        if labels is not None and labels != config.num_labels:
            config.num_labels = labels
    return config


def model_class(source: Source) -> Any:
    """The Auto class of transformers for the adapter's model.

    An adapter without a task type names the class of its model, which is looked up in transformers only.
    """
    import transformers

    task = source.config.get("task_type")
    if task is None and isinstance(source.config.get("auto_mapping"), dict):
        name = source.config["auto_mapping"].get("base_model_class")
        base_class = getattr(transformers, name, None) if isinstance(name, str) else None
        if isinstance(base_class, type) and issubclass(base_class, transformers.PreTrainedModel):
            return base_class
    return getattr(transformers, _AUTO_CLASSES.get(str(task), "AutoModel"))


def local_base(source: Source) -> ModelLocation:
    """The base's files on this machine; a model on the hub is downloaded.

    Raises:
        ModelError: there is no such model.
    """
    with base_errors(source.base, _named_by(source)):
        return local_model(require_base_name(source), source.revision)


def local_model(name: str, revision: str | None) -> ModelLocation:
    """A model's files on this machine: safetensors or a GGUF file; a model on the hub is downloaded.

    Args:
        name: see `find_model`.
        revision: of a model on the hub.

    Raises:
        ModelError: there is no such model.
    """
    location = find_model(name)
    if location.is_local:
        return location
    from huggingface_hub import snapshot_download

    patterns = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken"]
    try:
        with quiet():
            if location.gguf_file is not None:
                return download_gguf(location, revision)
            return ModelLocation(snapshot_download(location.path, revision=revision, allow_patterns=patterns))
    except Exception as fault:  # the hub client raises dozens of unrelated types
        raise ModelError(f"model.name: {name} cannot be loaded: {reason_and_remedy(fault, location.path)}") from fault


def read_config(location: ModelLocation) -> dict[str, Any]:
    """The configuration of a base on this machine as plain data: its config.json, or the header of its GGUF file.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        if location.gguf_file is not None:
            with quiet():
                return read_model_config(location, None, False).to_dict()
        return json.loads(location.file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise ModelError(f"{location.file} cannot be read ({fault}); copy the model again") from fault


def _resize_vocabulary(source: Source, model: PreTrainedModel) -> None:
    """Resize the vocabulary of a base to that of an adapter, which holds the embeddings of the new tokens."""
    from kasatune.adapters.adapter_files import read_header
    from kasatune.adapters.embedding_tensors import stored_vocabulary

    rows = stored_vocabulary(read_header(source.adapter), model)
    embeddings: Any = model.get_input_embeddings()
    if rows is not None and rows != embeddings.weight.shape[0]:
        with quiet():
            model.resize_token_embeddings(rows, mean_resizing=False)


def _head_rows(source: Source) -> int | None:
    """The number of labels: the rows of the smallest matrix in the adapter outside of its adapted layers."""
    from kasatune.adapters.load import read_checked
    from kasatune.adapters.recognize_format import split_key

    header, kind, _ = read_checked(source.adapter)
    rows = [
        shape[0]
        for key, shape in header.shapes.items()
        if split_key(key, kind) is None and ".lora_" not in key and ".token_adapter." not in key and len(shape) == 2
    ]
    return min(rows, default=None)
