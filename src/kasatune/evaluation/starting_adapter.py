"""Continue training from a trained adapter (`model.adapter`): find it, check it against the recipe, load it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import set_peft_model_state_dict
from torch import Tensor, nn

from kasatune.adapters.adapter_files import WEIGHTS, Header, file_sha256, read_tensors
from kasatune.adapters.attach import check_fingerprint
from kasatune.adapters.certificate import CERTIFICATE, read_certificate
from kasatune.adapters.load import read_checked
from kasatune.adapters.lora_settings import check_settings, residual_init
from kasatune.adapters.recognize_format import TITLES, LayerShapes
from kasatune.data.tasks.mixture_parts import reads_chats
from kasatune.errors import AdapterError
from kasatune.io.model_location import find_adapter_folder
from kasatune.io.run_layout import ADAPTER, NATIVE, RECIPE
from kasatune.kasa.config import KasaConfig
from kasatune.methods.shared.peft_adapter import AdapterMethod
from kasatune.methods.table import METHODS
from kasatune.models.moved_base import recorded_fingerprint
from kasatune.recipes.messages import show
from kasatune.runs.directory import read_recipe
from kasatune.wording import counted

if TYPE_CHECKING:
    from kasatune.evaluation.task_model import TaskModel
    from kasatune.models.load import Base
    from kasatune.recipes.schema import Recipe

_KEYS = {
    "r": "method.r",
    "lora_alpha": "method.alpha",
    "use_rslora": "method.use_rslora",
    "convention": "method.convention",
    "core": "method.core",
    "truncate_by": "method.truncate_by",
    "drop": "method.drop",
    "orthonormal": "method.orthonormal",
}
"""Recipe keys of the fields of an adapter's configuration that decide what its tensors compute."""
_TRAINS_MORE = ("modules_to_save", "trainable_token_indices")
_TEMPLATE = "chat_template.jinja"


@dataclass(frozen=True)
class StartingAdapter:
    """The adapter that training continues from.

    Attributes:
        header: its configuration and the shapes of its tensors.
        kind: its format, "lora" or "kasa".
        layers: its adapted layers by name.
    """

    header: Header
    kind: str
    layers: Mapping[str, LayerShapes]

    @property
    def sha256(self) -> str:
        """SHA-256 of its tensors."""
        return file_sha256(self.header.folder / WEIGHTS)

    @property
    def chat_template(self) -> str | None:
        """The chat template that was saved with it or with the adapter/ of its run; None if none was."""
        folder = self.header.folder
        for place in (folder, folder.parent / ADAPTER) if folder.name == NATIVE else (folder,):
            if (place / _TEMPLATE).is_file():
                return (place / _TEMPLATE).read_text(encoding="utf-8")
        return None


def read_starting_adapter(name: str) -> StartingAdapter:
    """Read the header of an adapter that a recipe names as `model.adapter`, a run or the directory of an adapter.

    Raises:
        AdapterError: there is none, it is damaged, or it is of a kind that cannot be trained further.
    """
    folder = find_adapter_folder(Path(name).expanduser())
    if folder is None:
        raise AdapterError(f"model.adapter: {show(name)} holds no adapter; give a finished run or an adapter directory")
    header, kind, layers = read_checked(folder)
    if kind not in ("kasa", "lora"):
        raise AdapterError(
            f"model.adapter: {folder} holds {TITLES[kind]}; convert it first: kasatune export {folder} --to kasa"
        )
    if residual_init(header.config) is not None:
        raise AdapterError(
            f"model.adapter: {folder} changes the base when it is loaded (init_lora_weights "
            f"{header.config['init_lora_weights']}); convert it first: kasatune export {folder} --to lora"
        )
    check_settings({**header.config, "use_dora": None}, kind)
    return StartingAdapter(header, kind, layers)


def setting_faults(
    adapter: StartingAdapter, recipe: Recipe, method: AdapterMethod, planned: Iterable[str]
) -> Iterator[str]:
    """What keeps an adapter from being trained further by a recipe, one sentence for each setting that differs.

    Dropout, the weights of penalties and `protect` belong to training, not to the adapter, and may differ.

    Args:
        adapter: the adapter.
        recipe: the recipe.
        method: its method.
        planned: names of the layers that the recipe adapts.
    """
    folder, config = adapter.header.folder, adapter.header.config
    given: Any = method.config(recipe.method, "all-linear", {"task_type": "CAUSAL_LM", "modules_to_save": None})
    if given.peft_type.value != config["peft_type"]:
        yield (
            f"method.name: {show(recipe.method.name)} received; {folder} holds {TITLES[adapter.kind]}; use "
            + (_of_kasa(folder) if adapter.kind == "kasa" else "lora")
        )
        return
    is_dora = bool(config.get("use_dora"))
    if is_dora != bool(getattr(given, "use_dora", False)):
        yield (
            f"method.name: {show(recipe.method.name)} received; {folder} holds "
            f"{'a DoRA' if is_dora else 'no DoRA'} adapter; use {'dora' if is_dora else 'lora'}"
        )
    yield from _differing_settings(adapter, recipe, given)
    yield from _further_parts(adapter, given)
    yield from _differing_layers(adapter, planned)


def _of_kasa(folder: Path) -> str:
    """The methods that continue a native KaSA adapter, and the LoRA of its run, if there is one."""
    lora = folder.parent / ADAPTER
    stock = f", or name its export {lora} as model.adapter to continue that with lora" if lora.is_dir() else ""
    return f"kasa or akasa{stock}"


def _differing_settings(adapter: StartingAdapter, recipe: Recipe, given: Any) -> Iterator[str]:
    config = adapter.header.config
    for field, key in _KEYS.items():
        if not hasattr(given, field):
            continue
        ours, theirs = getattr(given, field), config.get(field, getattr(type(given), field, None))
        if field == "drop":
            ours, theirs = (given.r if ours is None else ours), (config["r"] if theirs is None else theirs)
        if ours == theirs:
            continue
        name = key.removeprefix("method.")
        if name in METHODS[recipe.method.name].uses:
            received = f"{key}: {show(ours)} received"
            yield f"{received}; the adapter in {adapter.header.folder} has {show(theirs)}; set {key} to it"
        else:
            yield (
                f"method.name: {show(recipe.method.name)} received, with {name} {show(ours)}; the adapter in "
                f"{adapter.header.folder} has {show(theirs)}; choose another method"
            )


def _further_parts(adapter: StartingAdapter, given: Any) -> Iterator[str]:
    """What an adapter holds that no recipe trains."""
    folder, config = adapter.header.folder, adapter.header.config
    more = [name for name in _TRAINS_MORE if config.get(name)]
    more += ["bias"] if (config.get("bias") or "none") != "none" else []
    if more:
        yield f"model.adapter: {folder} also trains {', '.join(more)}, which no recipe does; continue it with PEFT"
    ranks = {layer.rank for layer in adapter.layers.values()}
    if len(ranks) > 1:
        yield f"model.adapter: the layers of {folder} have several ranks, and a recipe has one; continue it with PEFT"
    is_scaled = isinstance(given, KasaConfig) and given.orthonormal  # which writes its scaling into alpha_pattern
    if config.get("alpha_pattern") and not is_scaled:
        yield f"model.adapter: {folder} has an alpha_pattern, and a recipe has one alpha; continue it with PEFT"


def _differing_layers(adapter: StartingAdapter, planned: Iterable[str]) -> Iterator[str]:
    ours, theirs = set(planned), set(adapter.layers)
    if ours == theirs:
        return
    endings = sorted({re.sub(r".*\.", "", name) for name in theirs})
    missing, more = sorted(theirs - ours), sorted(ours - theirs)
    what = f"leaves out {missing[0]}" if missing else f"adds {more[0]}"
    yield (
        f"method.target_modules: the adapter in {adapter.header.folder} has {counted(len(theirs), 'layer')}, and the "
        f"recipe selects {len(ours)}: it {what}; the adapter's layers end in [{', '.join(endings)}]"
    )


def check_base(recipe: Recipe, base: Base) -> None:
    """Compare a base without an adapter with the one that the adapter of a recipe was trained on, if that is recorded.

    Adapters have sketches of their base's weights, or the run that they belong to has a fingerprint of the base, which
    is compared where both hold it in the same precision.

    Raises:
        AdapterError: it is another one, or the adapter cannot be read.
    """
    if recipe.model.adapter is None:
        return
    adapter = read_starting_adapter(recipe.model.adapter)
    folder = adapter.header.folder
    fingerprint = adapter.header.config.get("base_fingerprint")
    if fingerprint is None and (folder / CERTIFICATE).is_file():
        fingerprint = read_certificate(folder)["base"].get("fingerprint")
    other = f"model.name: {recipe.model.base_name} is another base than that of the adapter in {folder}"
    try:
        check_fingerprint(fingerprint, base.model, strict=True)
    except AdapterError as fault:
        raise AdapterError(f"{other}: {fault}") from fault
    if fingerprint is None and (folder.parent / RECIPE).is_file():
        theirs, recorded = read_recipe(folder.parent).model, recorded_fingerprint(folder.parent)
        is_float = all(section.quantization == "none" for section in (theirs, recipe.model))
        if recorded and is_float and theirs.dtype == recipe.model.dtype and base.fingerprint != recorded:
            raise AdapterError(
                f"{other}: the fingerprints of their weights differ; name the model that it was trained on"
            )


def prepare(task_model: TaskModel, batches: Iterable[Mapping[str, Tensor]]) -> str | None:
    """Prepare a method for the first step, and load the adapter that training continues from, if there is one.

    Args:
        task_model: as loaded for training; changed in place.
        batches: training rows; see `Method.prepare`.

    Returns:
        One line for the user; None for nothing.

    Raises:
        AdapterError: the adapter cannot be loaded.
    """
    recipe = task_model.recipe
    line = task_model.method.prepare(task_model.model.eval(), recipe.method, batches)
    if recipe.model.adapter is None:
        return line
    adapter = read_starting_adapter(recipe.model.adapter)
    load_tensors(task_model.model, adapter)
    lines = [line] if line else []
    lines.append(f"training continues the adapter in {adapter.header.folder}")
    template = adapter.chat_template if reads_chats(recipe.task) else None
    if template is not None and template != task_model.base.tokenizer.chat_template:
        lines.append(
            f"warning: {adapter.header.folder} was trained with another chat template than this run uses: set "
            "task.template to the one it was trained with"
        )
    return "\n".join(lines)


def load_tensors(model: nn.Module, adapter: StartingAdapter) -> None:
    """Load all tensors of an adapter into an attached one of the same settings.

    Raises:
        AdapterError: a tensor belongs to no layer, or one is missing.
    """
    tensors = read_tensors(adapter.header).tensors
    result: Any = set_peft_model_state_dict(model, tensors)
    lacking = [key for key in result.missing_keys if "lora_" in key or "kasa_" in key]
    if result.unexpected_keys or lacking:
        what = f"holds {result.unexpected_keys[0]}" if result.unexpected_keys else f"lacks {lacking[0]}"
        raise AdapterError(
            f"{adapter.header.folder}: the adapter {what}, which the method of the recipe does not match"
        )
