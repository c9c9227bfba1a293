"""The private names of other libraries that src uses: one row for each, and a test that the installed version has it.

A row that fails after an upgrade says where the name is used, why, and what would replace it. A row whose name is no
longer used fails too; test_private_names.py finds names that have no row.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SOURCES = Path(__file__).resolve().parents[1] / "src" / "kasatune"


@dataclass(frozen=True)
class Row:
    """A private name.

    Attributes:
        library: that has it; upper bounds in pyproject.toml cover those that change.
        name: as it is written in the source file.
        used_in: the source files, below src/kasatune.
        why: what it is needed for.
        instead: what would replace it.
        holds: whether the installed library still has it, in the form that is used.
    """

    library: str
    name: str
    used_in: tuple[str, ...]
    why: str
    instead: str
    holds: Callable[[], bool]


def get(path: str) -> Any:
    """The object at "module:attribute.attribute"."""
    module, _, attributes = path.partition(":")
    value = importlib.import_module(module)
    for attribute in attributes.split(".") if attributes else ():
        value = getattr(value, attribute)
    return value


def takes(path: str, *names: str) -> Callable[[], bool]:
    """Whether a function has parameters of these names, in this order."""

    def holds() -> bool:
        parameters = [name for name in inspect.signature(get(path)).parameters if name in names]
        return parameters == list(names)

    return holds


def source_has(path: str, text: str) -> Callable[[], bool]:
    """Whether the source of an object holds a text: for names that only instances have."""
    return lambda: text in inspect.getsource(get(path))


def instance_has(make: Callable[[], Any], name: str) -> Callable[[], bool]:
    return lambda: hasattr(make(), name)


def linear() -> Any:
    return get("torch.nn:Linear")(2, 2)


def an_enum_member_can_be_added() -> bool:
    names = ("_member_names_", "_member_map_", "_value2member_map_")
    return issubclass(get("peft:PeftType"), str) and all(hasattr(get("peft:PeftType"), name) for name in names)


def the_flag_alone_disables_an_adapter() -> bool:
    config = get("peft:LoraConfig")(r=1, target_modules=["0"], init_lora_weights=False)
    layer = get("peft:inject_adapter_in_model")(config, get("torch.nn:Sequential")(linear()))[0]
    x = get("torch:ones")(1, 2)
    adapted, trained = layer(x), [p.requires_grad for p in layer.parameters()]
    layer._disable_adapters = True
    flags = [layer.disable_adapters, layer(x).equal(layer.base_layer(x)), not adapted.equal(layer.base_layer(x))]
    return all(flags) and trained == [p.requires_grad for p in layer.parameters()]


TUNER = "peft.tuners.tuners_utils:BaseTuner"
TUNERS = ("kasa/model.py", "methods/bottleneck/model.py", "mixtures/model.py")
TRAINER = "transformers.trainer:Trainer"
ENUM = "PEFT has no public way to add a type", "a public registry of PEFT types"
HOOKS = "PEFT calls it on every tuner", "nothing: PEFT documents that tuners override it"
RESUME = "a checkpoint of ours holds trained parameters only, readable by any number of processes", "a public hook"
STAGE3 = "deepspeed.runtime.zero.stage3:DeepSpeedZeroOptimizer_Stage3"
NO_PUBLIC = "a public form of the same"

ROWS = (
    *(
        Row("peft", name, ("kasa/registration.py",), *ENUM, an_enum_member_can_be_added)
        for name in ("_member_names_", "_member_map_", "_value2member_map_", "_name_", "_value_")
    ),
    Row("peft", "_prepare_model", TUNERS, *HOOKS, takes(f"{TUNER}._prepare_model", "peft_config", "model")),
    Row(
        "peft",
        "_create_and_replace",
        TUNERS,
        *HOOKS,
        takes(
            f"{TUNER}._create_and_replace",
            *("peft_config", "adapter_name", "target", "target_name", "parent", "current_key"),
        ),
    ),
    Row(
        "peft",
        "_replace_module",
        TUNERS,
        *HOOKS,
        takes(f"{TUNER}._replace_module", "parent", "child_name", "new_module", "child"),
    ),
    Row(
        "gguf",
        "_get_field_parts",
        ("models/gguf.py",),
        "the package's reader takes seconds for the arrays of a vocabulary",
        "a reader that reads arrays at once",
        takes("gguf:GGUFReader._get_field_parts", "orig_offs", "raw_type"),
    ),
    Row(
        "gguf",
        "_get",
        ("models/gguf.py",),
        "reads a number of the header where the package's reader does",
        "a reader that reads arrays at once",
        takes("gguf:GGUFReader._get", "offset", "dtype", "count"),
    ),
    Row(
        "peft",
        "_remap_adapter_state_dict_for_load",
        TUNERS,
        "tells that a load is under way, so that no SVD is computed",
        "a public hook before a load",
        takes(f"{TUNER}._remap_adapter_state_dict_for_load", "adapter_name", "state_dict"),
    ),
    Row(
        "peft",
        "_get_adapter_state_dict",
        ("kasa/model.py",),
        "decomposes deferred tails before an adapter is saved",
        "a public hook before a save",
        takes(f"{TUNER}._get_adapter_state_dict", "model", "config", "adapter_name", "state_dict"),
    ),
    Row(
        "peft",
        "_cast_adapter_dtype",
        TUNERS,
        "keeps the tail in the dtype it was computed in",
        NO_PUBLIC,
        takes(f"{TUNER}._cast_adapter_dtype", "adapter_name", "autocast_adapter_dtype"),
    ),
    Row(
        "peft",
        "_enable_peft_forward_hooks",
        TUNERS,
        "refuses batches of mixed adapters",
        NO_PUBLIC,
        source_has("peft:PeftModel", "._enable_peft_forward_hooks("),
    ),
    Row(
        "peft",
        "_prepare_adapter_config",
        ("methods/bottleneck/model.py",),
        *HOOKS,
        takes(f"{TUNER}._prepare_adapter_config", "peft_config", "model_config"),
    ),
    Row(
        "peft",
        "_check_target_module_exists",
        ("methods/bottleneck/model.py",),
        *HOOKS,
        takes(f"{TUNER}._check_target_module_exists", "peft_config", "key"),
    ),
    Row(
        "peft",
        "_remove_adapter_name_from_key",
        ("methods/bottleneck/model.py",),
        "an adapter is a module there, and its name is in the middle of its keys",
        NO_PUBLIC,
        takes(f"{TUNER}._remove_adapter_name_from_key", "key", "adapter_name"),
    ),
    Row(
        "peft",
        "_check_merge_allowed",
        ("methods/bottleneck/model.py", "mixtures/model.py"),
        *HOOKS,
        lambda: callable(get(f"{TUNER}._check_merge_allowed")),
    ),
    Row(
        "peft",
        "_check_new_adapter_config",
        ("methods/bottleneck/model.py", "mixtures/model.py"),
        *HOOKS,
        takes(f"{TUNER}._check_new_adapter_config", "config"),
    ),
    Row(
        "peft",
        "_move_adapter_to_device_of_base_layer",
        ("kasa/layer.py", "methods/bottleneck/layer.py", "mixtures/layer.py"),
        *HOOKS,
        takes(
            "peft.tuners.tuners_utils:BaseTunerLayer._move_adapter_to_device_of_base_layer", "adapter_name", "device"
        ),
    ),
    Row(
        "peft",
        "_cast_input_dtype",
        ("kasa/layer.py", "mixtures/layer.py"),
        "the same cast of x as in PEFT's other layers",
        "x.to(dtype)",
        takes("peft.tuners.tuners_utils:BaseTunerLayer._cast_input_dtype", "x", "dtype"),
    ),
    Row(
        "peft",
        "_maybe_include_all_linear_layers",
        ("kasa/model.py", "kasa/targets.py", "mixtures/model.py"),
        "target_modules='all-linear' names the layers that PEFT names",
        NO_PUBLIC,
        takes("peft.tuners.tuners_utils:_maybe_include_all_linear_layers", "peft_config", "model"),
    ),
    Row(
        "peft",
        "_disable_adapters",
        ("kasa/layer.py", "kasa/truncation/undisturbed_model.py", "methods/bottleneck/layer.py"),
        "layers read it in their forward pass; calibration disables adapters without changing requires_grad",
        "an `enable_adapters` that leaves requires_grad as it is",
        the_flag_alone_disables_an_adapter,
    ),
    Row(
        "peft",
        "_peft_loraga_grad",
        ("methods/lora_ga.py", "methods/shared/starting_factors.py"),
        "PEFT leaves the estimated gradient in this attribute of the base layer, and its LoRA-GA reads it there",
        "gradients of the base weights, accumulated here",
        source_has("peft.tuners.lora.layer:LoraLayer.lora_ga_init", "base_layer._peft_loraga_grad"),
    ),
    Row(
        "peft",
        "_get_kasa_loss",
        ("methods/peft_kasa.py",),
        "the method peft-kasa trains PEFT's own KaSA, whose penalty has no other access",
        "the terms computed from the parameters",
        source_has("peft.tuners.lora.model:LoraModel", "def _get_kasa_loss"),
    ),
    Row(
        "transformers",
        "_prepare_for_training",
        ("training/engines/run_trainer.py",),
        *RESUME,
        takes(f"{TRAINER}._prepare_for_training", "max_steps", "train_dataloader", "resume_from_checkpoint"),
    ),
    Row(
        "transformers",
        "_get_train_sampler",
        ("training/engines/run_trainer.py",),
        "batches of rows of similar length, in an order that a run resumed within an epoch repeats",
        "a public hook for the order of the training rows",
        takes(f"{TRAINER}._get_train_sampler", "train_dataset"),
    ),
    Row(
        "transformers",
        "_load_from_checkpoint",
        ("training/engines/run_trainer.py",),
        *RESUME,
        takes(f"{TRAINER}._load_from_checkpoint", "resume_from_checkpoint", "model"),
    ),
    Row(
        "transformers",
        "_n_gpu",
        ("training/engines/arguments.py",),
        "one GPU a process, never DataParallel",
        NO_PUBLIC,
        source_has("transformers:TrainingArguments", "self._n_gpu"),
    ),
    Row(
        "transformers",
        "_no_split_modules",
        ("distributed/fsdp.py",),
        "names the blocks to shard",
        NO_PUBLIC,
        lambda: hasattr(get("transformers:PreTrainedModel"), "_no_split_modules"),
    ),
    Row(
        "transformers",
        "_is_distributed_loading_by_transformers",
        ("distributed/fsdp.py",),
        "the Trainer then leaves placement and gradients to fully_shard",
        NO_PUBLIC,
        source_has("transformers.distributed.mixin", "_is_distributed_loading_by_transformers"),
    ),
    Row(
        "transformers",
        "_commit_hash",
        ("models/load.py", "weights/safetensors_reader.py"),
        "the checkpoint of a hub model is found again by its commit",
        "a public revision of a loaded model",
        source_has("transformers.configuration_utils:PreTrainedConfig", "_commit_hash"),
    ),
    Row(
        "transformers",
        "_from_model_config",
        ("evaluation/generate.py",),
        "EOS tokens apart, generation_config is ignored",
        NO_PUBLIC,
        instance_has(lambda: get("transformers:GenerationConfig")(), "_from_model_config"),
    ),
    Row(
        "trl",
        "_send_telemetry",
        ("training/engines/sft.py", "training/engines/pairs.py"),
        "nothing is sent anywhere",
        "HF_HUB_DISABLE_TELEMETRY",
        lambda: all(callable(get(f"trl:{name}Trainer._send_telemetry")) for name in ("SFT", "DPO", "Reward")),
    ),
    Row(
        "trl",
        "_prepare_dataset",
        ("training/engines/pairs.py",),
        "rows are rendered and tokenized by kasatune",
        NO_PUBLIC,
        lambda: all(callable(get(f"trl:{name}Trainer._prepare_dataset")) for name in ("DPO", "Reward")),
    ),
    Row(
        "trl",
        "_precompute_ref_logps",
        ("training/engines/preference.py",),
        "the reference is the model before the first step, whatever the method did to the base",
        NO_PUBLIC,
        lambda: callable(get("trl:DPOTrainer._precompute_ref_logps")),
    ),
    Row(
        "transformers",
        "_hf_peft_config_loaded",
        ("training/engines/preference.py",),
        "a quantized model inside a PeftModel may be trained",
        NO_PUBLIC,
        source_has("transformers.trainer_utils:validate_quantization_for_training", "_hf_peft_config_loaded"),
    ),
    Row(
        "accelerate",
        "_hf_hook",
        ("weights/base_weight.py", "weights/quantized_weight.py"),
        "the device on which an offloaded layer runs",
        NO_PUBLIC,
        source_has("accelerate.hooks:add_hook_to_module", "module._hf_hook"),
    ),
    Row(
        "accelerate",
        "_old_forward",
        ("weights/quantized_weight.py",),
        "a copied layer has its own forward",
        NO_PUBLIC,
        source_has("accelerate.hooks:add_hook_to_module", "module._old_forward"),
    ),
    Row(
        "accelerate",
        "_original_forward",
        ("methods/kasa.py",),
        "whether mixed precision wraps the forward",
        NO_PUBLIC,
        source_has("accelerate.accelerator", "_original_forward"),
    ),
    *(
        Row("torch", name, files, "no fused kernel and no update in place where hooks are", NO_PUBLIC, holds)
        for name, files, holds in (
            (name, files, instance_has(linear, name))
            for name, files in (
                ("_forward_hooks", ("kasa/kernel.py", "mixtures/layer.py")),
                ("_forward_pre_hooks", ("kasa/kernel.py",)),
                ("_backward_hooks", ("kasa/kernel.py", "mixtures/layer.py")),
                ("_backward_pre_hooks", ("kasa/kernel.py", "mixtures/layer.py")),
            )
        )
    ),
    Row(
        "torch",
        "_apply",
        ("kasa/layer.py", "weights/base_weight.py"),
        "weights that are no parameters move along",
        NO_PUBLIC,
        takes("torch.nn:Module._apply", "fn", "recurse"),
    ),
    Row(
        "torch",
        "_version",
        ("kasa/penalty.py",),
        "whether a gradient was changed since the penalty was added",
        NO_PUBLIC,
        instance_has(lambda: get("torch:zeros")(1), "_version"),
    ),
    Row(
        "torch",
        "torch.utils._python_dispatch",
        ("weights/fingerprint.py",),
        "the parts of a tensor subclass",
        NO_PUBLIC,
        lambda: callable(get("torch.utils._python_dispatch:is_traceable_wrapper_subclass")),
    ),
    Row(
        "bitsandbytes",
        "packing_format_for_cpu",
        ("weights/bitsandbytes_cpu.py",),
        "whether the CPU kernel has packed a 4-bit weight, whose layout dequantization then does not know",
        "a public Params4bit.unpack(), or a dequantization that knows the layout",
        lambda: all(
            source_has("bitsandbytes.functional:_convert_weight_packed_for_cpu", name)()
            for name in ("packing_format_for_cpu", "original_qshape", "original_dtype", "block_n: int = 32")
        ),
    ),
    Row(
        "deepspeed",
        "_z3_optimizer",
        ("distributed/zero3.py",),
        "the optimizer that holds a partitioned parameter",
        "deepspeed.utils.safe_get_full_grad and its like",
        source_has(STAGE3, "_z3_optimizer"),
    ),
)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.library}-{row.name}")
def test_the_installed_library_has_the_name_as_it_is_used(row):
    pytest.importorskip(row.library)
    assert row.holds(), f"{row.used_in}: {row.why}; instead: {row.instead}"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.library}-{row.name}")
def test_the_name_is_used_where_the_row_says(row):
    for file in row.used_in:
        assert row.name in (SOURCES / file).read_text(encoding="utf-8"), f"{file}: remove the file from the row"
