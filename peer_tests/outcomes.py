"""How a test of PEFT's suite ended on one of this project's tuners: passed, refused by design, skipped or failed."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from kasatune.errors import KasatuneError

_LONGEST = 600
"""Characters of a message that a record keeps."""


class Outcome(StrEnum):
    """The outcomes of a test."""

    PASSED = "passed"
    REFUSED = "refused"
    SKIPPED = "skipped"
    NO_FILE = "no file"
    FAILED = "failed"


@dataclass(frozen=True)
class Refusal:
    """A documented difference from LoRA.

    Args:
        title: for the table of results.
        why: the reason, and what to use instead.
        message: pattern of the error that the tuner raises; "" if an assertion of the test fails.
        assertion: pattern of the line of the test that fails then.
        tests: pattern of the tests; "" for any.
        twins: pattern of the tuners.
    """

    title: str
    why: str
    message: str = ""
    assertion: str = ""
    tests: str = ""
    twins: str = ""


_KASA = "^KaSA"
_DROPS = "^KaSA(?!, drop 0)"
_BOTTLENECK = "^bottleneck"
_MIXTURE = "^(MoE-LoRA|MoR|MALoRA|MiLoRA)"
_MILORA = "^MiLoRA"

REFUSALS: tuple[Refusal, ...] = (
    Refusal(
        "a setting of LoraConfig that KasaConfig does not have",
        "Variants of LoRA (DoRA, VeLoRA, BD-LoRA, MonteCLoRA), `init_lora_weights`, `lora_bias`, `target_parameters` "
        "and `trainable_token_indices` are not part of KaSA. Each error names what to use instead.",
        message=r"^KasaConfig got an unexpected keyword argument",
        twins=_KASA,
    ),
    Refusal(
        "a layer that KaSA cannot adapt",
        "KaSA adapts linear layers: nn.Linear, transformers' Conv1D and convolutions of kernel 1. Embeddings, other "
        "convolutions and nn.MultiheadAttention are refused by name.",
        message=r"matches layers that KaSA cannot adapt|target_modules names expert weights",
        twins=_KASA,
    ),
    Refusal(
        "a layer with too few rows or columns",
        "r must be below min(out, in), so that a part of the weight is left. PEFT's smallest models have layers with "
        "one or two rows.",
        message=r"rank \d+ must be below min\(out, in\)",
        twins=_KASA,
    ),
    Refusal(
        "several active or merged adapters",
        "Every KaSA adapter drops its own tail of W, so a sum of adapters would drop several. Export each adapter to "
        "LoRA and combine these.",
        message=r"one KaSA adapter can be (active|merged) at a time|KaSA adapters cannot be added",
        twins=_KASA,
    ),
    Refusal(
        "a batch of mixed adapters",
        "One forward pass uses one adapter for the entire batch.",
        message=r"adapter_names: ",
    ),
    Refusal(
        "another base model",
        "The test saves an adapter and loads it onto a model with other random weights. The tail belongs to its base, "
        "so the fingerprint of the base is checked; `check_base=False` loads it with a warning.",
        message=r"this is another base model than the adapter was trained on",
        twins=_KASA,
    ),
    Refusal(
        "an adapter with NaN",
        "The test trains with a learning rate of 0.5 until the factors are NaN, saves and loads them. An adapter that "
        "holds NaN is not loaded.",
        message=r"this adapter cannot be loaded: .*holds NaN, Inf",
        tests="test_parameters_after_loading_model",
        twins=_KASA,
    ),
    Refusal(
        "a new adapter that changes the output",
        "A KaSA adapter drops the smallest singular triplets of W when it is attached, so outputs differ from the base "
        "before training. The same tests pass with `drop=0`.",
        assertion=r"allclose\(outputs_(base, outputs_before|before, outputs_disabled)",
        tests="test_disable_adapters",
        twins=_DROPS,
    ),
    Refusal(
        "tail and sigma in float32",
        "The test expects every tensor of the adapter in the dtype of a 16-bit base. sigma and the tail stay in "
        "float32: the tail is smaller than the rounding of a 16-bit weight.",
        assertion=r"p\.dtype == expected_dtype|get_adapter_dtype\(",
        tests="test_adapter_dtype_autocast|test_add_adapter_no_autocast_adapter_dtype",
        twins=_KASA,
    ),
    Refusal(
        "a frozen tail",
        "The test expects a gradient of every tensor of an adapter. The tail is not trained.",
        assertion=r"param\.grad is not None|requires_grad",
        twins=_KASA,
    ),
    Refusal(
        "bottleneck adapters: places instead of target_modules",
        "`places` says which module is adapted and how; the test passes target_modules.",
        message=r"BottleneckConfig: target_modules is not used|BottleneckConfig got an unexpected keyword argument",
        twins=_BOTTLENECK,
    ),
    Refusal(
        "bottleneck adapters: a module of unknown width",
        "The widths of linear layers and of transformers' blocks are known. Other modules are refused by name, and so "
        "are names that no module has.",
        message=r"whose width is not known|is no module of",
        twins=_BOTTLENECK,
    ),
    Refusal(
        "bottleneck adapters: an architecture that is not supported",
        "The places in a block are known for the architectures in docs/methods.md; for others give `places`.",
        message=r"the model type .* is not supported",
        twins=_BOTTLENECK,
    ),
    Refusal(
        "bottleneck adapters: a test that reads a field of LoraConfig",
        "The test itself reads `target_parameters` of the configuration, which is a field of LoraConfig.",
        message=r"^AttributeError: 'BottleneckConfig' object has no attribute 'target_parameters'",
        tests="test_multiple_active_adapters_forward",
        twins=_BOTTLENECK,
    ),
    Refusal(
        "bottleneck adapters: merging",
        "The adapter is not linear, so there is no weight that it could be merged into.",
        message=r"a bottleneck adapter is not linear",
        twins=_BOTTLENECK,
    ),
    Refusal(
        "mixtures: a setting of LoraConfig that they do not have",
        "`rank_pattern`, `alpha_pattern`, `bias`, `init_lora_weights`, `target_parameters` and variants of LoRA are "
        "not part of a mixture. Each error names the reason.",
        message=r"^(MoeLora|Mor|Malora|MiloraMoe)Config got an unexpected keyword argument",
        twins=_MIXTURE,
    ),
    Refusal(
        "mixtures: a layer that is not linear",
        "A mixture adapts nn.Linear and transformers' Conv1D. Embeddings, convolutions and nn.MultiheadAttention are "
        "refused by name.",
        message=r"A mixture adapts linear layers",
        twins=_MIXTURE,
    ),
    Refusal(
        "mixtures: merging, and sums of adapters",
        "The update depends on the input, through the router, so there is no weight that it could be merged into.",
        message=r"depends on the input, through its router",
        twins=_MIXTURE,
    ),
    Refusal(
        "mixtures: several active adapters",
        "One mixture is active at a time.",
        message=r"one mixture can be active at a time",
        twins=_MIXTURE,
    ),
    Refusal(
        "mixtures: an adapter with NaN",
        "The test trains with a learning rate of 0.5 until the factors are NaN, saves and loads them. An adapter that "
        "holds NaN is not loaded.",
        message=r"this adapter cannot be loaded: .*holds NaN or Inf",
        tests="test_parameters_after_loading_model",
        twins=_MIXTURE,
    ),
    Refusal(
        "mixtures: a router that three steps hardly change",
        "B starts at 0, so a router has no gradient of the loss in the first step. The test allows three steps, and "
        "has a higher learning rate for tuners of PEFT of which this is true.",
        assertion=r"not torch\.allclose\(param_before, param_after",
        tests="test_only_params_are_updated",
        twins=_MIXTURE,
    ),
    Refusal(
        "MiLoRA: an encoder and a decoder, layers in no block, or a model without a configuration",
        "Its routers read the hidden states of a prompt before a block, where prompt and answer are one text.",
        message=r"has an encoder and a decoder|is in no block of the model|states no hidden_size for its router",
        twins=_MILORA,
    ),
    Refusal(
        "MiLoRA: a layer that no prompt chooses",
        "The test computes gradients in evaluation mode, where layers that no row of the batch chooses are left out.",
        assertion=r"param\.grad is not None",
        twins=_MILORA,
    ),
    Refusal(
        "mixtures: reentrant gradient checkpointing",
        "It drops the balance loss of the routers, and MiLoRA's routers decide before their block, outside the part "
        "that is computed again. Use `use_reentrant=False`.",
        message=r"use_reentrant=True (discards the balance loss|cannot compute the gradient)",
        twins=_MIXTURE,
    ),
)
"""The documented differences from LoRA, in the order in which they are tried."""

_NO_FILE = re.compile(
    r"offline|couldn't (connect|find)|can't (load|find)|cannot (find|send)|not a local folder|connection|resolve",
    re.IGNORECASE,
)


def describe(error: BaseException | None) -> dict[str, Any]:
    """What the record of a test keeps of the exception that ended it.

    Returns:
        error: its type and message; line: the line of code that raised it; raised: the messages of this project's
        errors among it and its causes; hub: whether a file of the hub was asked for.
    """
    if error is None:
        return {"error": "", "line": "", "raised": [], "hub": False}
    chain = list(_chain(error))
    frames = traceback.extract_tb(error.__traceback__)
    return {
        "line": (frames[-1].line or "") if frames else "",
        "error": f"{type(error).__name__}: {error}"[:_LONGEST],
        "raised": [str(link)[:_LONGEST] for link in chain if isinstance(link, KasatuneError)],
        "hub": any(isinstance(link, OSError | ValueError) and _NO_FILE.search(str(link)) for link in chain),
    }


def classify(record: Mapping[str, Any]) -> tuple[Outcome, str]:
    """The outcome of a recorded test, with the title of the refusal, the reason of the skip or the error.

    Args:
        record: `pytest` ("passed", "failed", "skipped" or "xfailed"), `test`, `twin`, and the items of `describe`.
    """
    if record["pytest"] == "passed":
        return Outcome.PASSED, ""
    if record["pytest"] in ("skipped", "xfailed"):
        return Outcome.SKIPPED, record["error"]
    refusal = next((refusal for refusal in REFUSALS if _is_case_of(refusal, record)), None)
    if refusal is not None:
        return Outcome.REFUSED, refusal.title
    if record["hub"]:
        return Outcome.NO_FILE, record["error"]
    return Outcome.FAILED, record["error"]


def _is_case_of(refusal: Refusal, record: Mapping[str, Any]) -> bool:
    if not re.search(refusal.twins, record["twin"]) or not re.search(refusal.tests, record["test"]):
        return False
    if refusal.message:
        return any(re.search(refusal.message, message) for message in (*record["raised"], record["error"]))
    is_assertion = not record["raised"] and record["error"].startswith("AssertionError")
    return is_assertion and re.search(refusal.assertion, record["line"]) is not None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it was raised from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
