"""Compare merge, shrink and export with PEFT's outputs for adapters of random PEFT configurations.

Run `python -m soak.peft_adapters --number 500`. Every configuration must give PEFT's own outputs, or be refused with a
message that names a setting or a layer of it; `--only N` repeats one of them and prints what happened.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import multiprocessing
import os
import re
import shutil
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from kasatune.errors import KasatuneError
from kasatune.io.library_noise import quiet
from soak.adapter_draws import FAMILIES, WORDS, Draw, draw, make_adapter, read_with_peft

NUMBER, QUICK = 500, 12
LIMIT = 2e-4  # of the largest logit, as a share; float32
OPERATIONS = ("merge", "shrink", "lora", "gguf")


class Outcome(NamedTuple):
    """What one operation made of an adapter: "equal", "refused", "different" or "failed", and the figure or message."""

    word: str
    detail: str


class Result(NamedTuple):
    """The outcomes of one configuration by operation; empty if PEFT could not train it."""

    drawn: Draw
    outcomes: dict[str, Outcome]
    read_by_peft: bool


def main(argv: Sequence[str] | None = None) -> int:
    """Try configurations; return exit status 1 if one gave other outputs without a refusal."""
    parser = argparse.ArgumentParser(prog="python -m soak.peft_adapters", description=__doc__)
    parser.add_argument("--number", type=int, default=NUMBER, help="number of configurations")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="number of processes")
    parser.add_argument("--only", type=int, help="the number of one configuration to try, with details")
    parser.add_argument("--quick", action="store_true", help="a few configurations, without writing the record")
    arguments = parser.parse_args(argv)
    started = time.perf_counter()
    numbers = range(QUICK if arguments.quick else arguments.number)
    if arguments.only is not None:
        numbers = range(arguments.only, arguments.only + 1)
    if arguments.jobs > 1:
        with multiprocessing.get_context("fork").Pool(arguments.jobs) as pool:
            shares = [(numbers[start :: arguments.jobs], arguments.seed) for start in range(arguments.jobs)]
            results = [result for share in pool.starmap(try_all, shares) for result in share]
    else:
        results = try_all(numbers, arguments.seed, verbose=arguments.only is not None)
    faults = [fault for result in results for fault in faults_of(result)]
    print(f"{len(results)} configurations, {len(faults)} faults", flush=True)
    if not arguments.quick and arguments.only is None:
        _record(results, arguments.number, arguments.seed, time.perf_counter() - started)
    return int(bool(faults))


def try_all(numbers: Sequence[int], seed: int = 0, *, verbose: bool = False) -> list[Result]:
    """Try the configurations of these numbers, and print every fault as it is found."""
    results = []
    with tempfile.TemporaryDirectory(prefix="kasatune-adapters-") as folder, quiet(lambda text: None):
        bases = _Bases(Path(folder))
        for number in numbers:
            place = Path(folder) / "drawn"
            result = try_one(draw(number, seed), bases, place, number)
            for fault in faults_of(result):
                print(f"{number}: {result.drawn}: {fault}", flush=True)
            if verbose:
                print(result.drawn, *(f"{name}: {outcome}" for name, outcome in result.outcomes.items()), sep="\n")
            shutil.rmtree(place, ignore_errors=True)
            results.append(result)
    return results


def faults_of(result: Result) -> list[str]:
    """The operations that gave other outputs, failed, or refused without naming anything."""
    return [
        f"{operation} {outcome.word}: {outcome.detail}"
        for operation, outcome in result.outcomes.items()
        if outcome.word not in ("equal", "refused")
    ]


class _Bases:
    """The base models, saved once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loaded: dict[str, PreTrainedModel] = {}

    def path(self, family: str) -> Path:
        """The folder of a base."""
        path = self._folder / re.sub(r"\W+", "-", family)
        if not path.is_dir():
            torch.manual_seed(0)
            model = FAMILIES[family].build()
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if name.endswith("bias"):
                        parameter.normal_(std=0.1)
            model.save_pretrained(path)
        return path

    def load(self, family: str) -> PreTrainedModel:
        """A base as it was saved; a new model at every call."""
        if family not in self._loaded:
            self._loaded[family] = self.load_from(self.path(family), family)
        return copy.deepcopy(self._loaded[family])

    def load_from(self, path: Path, family: str) -> PreTrainedModel:
        """A model of a family, from its folder."""
        causal = FAMILIES[family].task == "CAUSAL_LM"
        kind: Any = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
        return kind.from_pretrained(path).eval()


def try_one(drawn: Draw, bases: _Bases, place: Path, number: int) -> Result:
    """Train an adapter of a configuration, and compare what every operation makes of it with PEFT's outputs."""
    place.mkdir()
    try:
        make_adapter(drawn, bases.load(drawn.family), place, number)
    except Exception:  # PEFT refuses many combinations, by many types
        return Result(drawn, {}, read_by_peft=False)
    adapter = place / "adapter"
    try:
        expected = _logits(read_with_peft(bases.load(drawn.family), adapter))
    except Exception:
        expected = None
    names = _names(adapter, drawn)
    outcomes = {}
    for operation in OPERATIONS:
        with _random_state_kept():
            outcomes[operation] = _attempt(operation, adapter, place / operation, bases, drawn.family, expected, names)
    return Result(drawn, outcomes, expected is not None)


def _attempt(
    operation: str,
    adapter: Path,
    out: Path,
    bases: _Bases,
    family: str,
    expected: Tensor | None,
    names: set[str],
) -> Outcome:
    act: Callable[[Path, Path, _Bases, str], Tensor] = globals()[f"_{operation}"]
    try:
        given = act(adapter, out, bases, family)
    except KasatuneError as refusal:
        message = str(refusal)
        named = refusal.exit_status == 2 and any(name in message for name in names)
        return Outcome("refused" if named else "failed", message)
    except Exception as fault:
        where = traceback.extract_tb(fault.__traceback__)[-1]
        return Outcome("failed", f"{type(fault).__name__} in {Path(where.filename).name}:{where.lineno}: {fault}")
    if expected is None:
        return Outcome("different", "PEFT cannot load the adapter, and here it was converted")
    difference = float((given - expected).abs().max() / expected.abs().max())
    return Outcome("equal" if difference <= LIMIT else "different", f"{difference:.2g} of the largest logit")


def _merge(adapter: Path, out: Path, bases: _Bases, family: str) -> Tensor:
    from kasatune.adapter_tools.merge import merge

    merge(adapter, out, str(bases.path(family)))
    return _logits(bases.load_from(out, family))


def _shrink(adapter: Path, out: Path, bases: _Bases, family: str) -> Tensor:
    """Shrink without loss, from a model that must stay as it is."""
    from kasatune import shrink_adapter

    base = bases.load(family)
    with _unchanged(base):
        shrink_adapter(adapter, out, energy=1.0, base=base)
    return _logits(read_with_peft(bases.load(family), out))


def _lora(adapter: Path, out: Path, bases: _Bases, family: str) -> Tensor:
    from kasatune import export_adapter

    base = bases.load(family)
    with _unchanged(base):
        export_adapter(adapter, out, "lora", base=base)
    return _logits(read_with_peft(bases.load(family), out))


def _gguf(adapter: Path, out: Path, bases: _Bases, family: str) -> Tensor:
    """W + B A of the layers of the file, in a fresh base."""
    import gguf

    from kasatune.adapter_tools.export import convert_adapter
    from kasatune.adapters.gguf_export import FILE, read_gguf

    convert_adapter(adapter, out, "gguf", base=str(bases.path(family)))
    model = bases.load(family)
    layers = read_gguf(out / FILE, model.config.to_dict())
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.config.num_hidden_layers)
    with torch.no_grad():
        for name, module in model.named_modules():
            lora = layers.pop(known.get_name(name) or "", None)
            if lora is not None:
                weight: Any = module.weight
                weight.add_(lora.B @ lora.A)
    assert not layers, f"layers that the base lacks: {list(layers)}"
    return _logits(model)


@contextlib.contextmanager
def _unchanged(model: PreTrainedModel) -> Generator[None]:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [parameter.requires_grad for parameter in model.parameters()]
    modules = [type(module) for module in model.modules()]
    try:
        yield
    finally:
        after = model.state_dict()
        same = before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
        assert same, "the caller's base was changed"
        assert flags == [parameter.requires_grad for parameter in model.parameters()], "requires_grad was changed"
        assert modules == [type(module) for module in model.modules()], "modules of the caller's base were replaced"


@contextlib.contextmanager
def _random_state_kept() -> Generator[None]:
    before = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.set_rng_state(before)


@torch.no_grad()
def _logits(model: Any) -> Tensor:
    ids = torch.randint(1, WORDS, (2, 12), generator=torch.Generator().manual_seed(3))
    ids[:, 4] = 7  # the invocation token of activated LoRA
    return model.eval()(input_ids=ids).logits


def _names(adapter: Path, drawn: Draw) -> set[str]:
    """What a refusal may name: settings that are on, modules of the file, and the type of the base for GGUF."""
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    names = {name for name, value in config.items() if name not in _USUAL and value not in (None, False, [], {}, "")}
    names |= {str(config.get("init_lora_weights"))} if isinstance(config.get("init_lora_weights"), str) else set()
    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as file:
        names |= {part for key in file.keys() for part in key.split(".")[2:] if "_" in part}  # noqa: SIM118
    return names | {"llama, mistral", "heads or biases"} | set(drawn.later)


def settings_on(drawn: Draw) -> list[str]:
    """The settings of a configuration that a table counts: those drawn, and the initialization by name."""
    init = drawn.settings["init_lora_weights"]
    names = [f"init_lora_weights={init}", *(n for n in drawn.settings if n not in _ALWAYS)]
    names += [f"a field of a later version ({'on' if any(drawn.later.values()) else 'off'})"] if drawn.later else []
    return names + (["saved with path_initial_model_for_weight_conversion"] if drawn.converted else [])


# Settings of every adapter, which explain no refusal.
_USUAL = (
    *("r", "lora_alpha", "peft_type", "peft_version", "task_type", "auto_mapping", "inference_mode", "megatron_core"),
    *("base_model_name_or_path", "target_modules"),
)
_ALWAYS = (
    *("task_type", "r", "lora_alpha", "init_lora_weights", "target_modules"),
    *("lora_ga_config", "loftq_config", "corda_config", "eva_config"),
)


def _record(results: list[Result], number: int, seed: int, seconds: float) -> None:
    from soak.record import write

    counts: dict[str, Counter[str]] = {}
    for result in results:
        words = Counter(outcome.word for outcome in result.outcomes.values())
        if not result.outcomes:
            words["not trained"] = len(OPERATIONS)
        for name in ["all", *settings_on(result.drawn)]:
            counts.setdefault(name, Counter()).update({**words, "drawn": 1})
    order = sorted(counts, key=lambda name: (name != "all", not name.startswith("init"), name))
    faults = sum(len(faults_of(result)) for result in results)
    write(
        part="peft_adapters",
        title="Adapters of random PEFT configurations",
        order=60,
        command=f"python -m soak.peft_adapters --number {number} --seed {seed}",
        text=(
            "LoRA configurations of PEFT are drawn at random, with every initialization and every flag, and an adapter "
            "of each is trained on a tiny model (Llama, tied Llama with biases, GPT-2, BERT, Mixtral) and saved by "
            "PEFT. `merge`, `shrink` (without loss), `export --to lora` and `export --to gguf` must give the logits of "
            f"`PeftModel.from_pretrained` to {LIMIT:g} of the largest one, or refuse the adapter with a message that "
            "names a setting, layer or tensor of it; a base that the caller passed must be unchanged, bit for bit. The "
            "table counts operations, four for each configuration; PEFT itself cannot train some combinations."
        ),
        columns=["setting", "configurations", "equal", "refused", "PEFT cannot train it", "different or failed"],
        rows=[
            [
                name,
                counts[name]["drawn"],
                counts[name]["equal"],
                counts[name]["refused"],
                counts[name]["not trained"],
                counts[name]["different"] + counts[name]["failed"],
            ]
            for name in order
        ],
        totals={"adapter configurations": len(results), "lost": faults},
        findings=FINDINGS,
        seconds=seconds,
    )


FINDINGS = [
    "PiSSA, OLoRA, CorDA, LoRA-GA, LoftQ and activated LoRA were merged and shrunk as plain LoRA: PiSSA and OLoRA are"
    " converted with their base, the others are refused.",
    "Measuring an adapter with trained biases, or one whose loading changes the base, wrote into the base that the"
    " caller passed.",
    "A KaSA adapter of PEFT on a tied head was converted without the change of the embedding: refused.",
    "An adapter that lacks a head of its modules_to_save, as PEFT writes it when it converts an initialization, was"
    " merged with a new head: refused.",
]


if __name__ == "__main__":
    os.environ.setdefault("KASATUNE_CACHE", "off")
    raise SystemExit(main())
