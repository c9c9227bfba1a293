"""Compare PEFT's KaSA and kasatune's on the same cases, with tiny random models.

python -m benchmarks.against_peft [--page FILE] [--forgetting RUNS.jsonl]

--forgetting adds two rows of SmolLM2-135M, from finished runs made by
`python -m benchmarks.forgetting E2E INSTRUCTIONS --out RUNS.jsonl --arms peft-kasa@0.004,kasa@0.004,akasa-0.02@0.004
--seeds 0`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import peft
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from benchmarks.harness import duration, machine
from kasatune import KasaConfig, export_adapter
from kasatune.io.library_noise import quiet
from kasatune.kasa import oracle
from kasatune.models.quantization import quantization_config

PAGE = Path(__file__).parents[1] / "docs" / "results" / "against-peft.md"
FURTHER = (
    "The last two rows are runs of SmolLM2-135M recorded by `python -m benchmarks.forgetting`, mean loss of an answer "
    "token in nats. "
)
RANK = 4
TARGETS = ["q_proj", "v_proj", "down_proj"]
IDS = torch.randint(0, 97, (4, 12), generator=torch.Generator().manual_seed(1))


class Row(NamedTuple):
    """One case: what was done, and what came of it with either."""

    what: str
    peft: str
    ours: str


Make = Callable[..., peft.PeftConfig]


def pefts(r: int = RANK, beta: float = 1e-4, gamma: float = 1e-3, **options: Any) -> LoraConfig:
    """PEFT's KaSA: a LoraConfig with its `kasa_config`."""
    return LoraConfig(r=r, lora_alpha=8, kasa_config=peft.KasaConfig(beta=beta, gamma=gamma), **options)


def ours(r: int = RANK, beta: float = 1e-4, gamma: float = 1e-3, **options: Any) -> KasaConfig:
    """The KaSA of this package, with the same settings."""
    return KasaConfig(r=r, lora_alpha=8, beta=beta, gamma=gamma, **options)


def llama(hidden: int = 64, layers: int = 2) -> LlamaForCausalLM:
    """A Llama with random weights and a small vocabulary."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=97,
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            initializer_range=0.1,
            tie_word_embeddings=False,
        )
    ).eval()


def gpt2() -> GPT2LMHeadModel:
    """A GPT-2, whose linear layers are Conv1D."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=2, n_positions=64)).eval()


def adapted(base: nn.Module, make: Make, **options: Any) -> Any:
    """The base with a new adapter, the same draw at every call."""
    torch.manual_seed(1)
    return get_peft_model(base, make(**{"target_modules": TARGETS, **options}))  # pyright: ignore[reportArgumentType]


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    """The outputs for fixed inputs, in evaluation mode."""
    return model.eval()(IDS).logits.float()


def apart(found: Tensor, expected: Tensor) -> float:
    """||found - expected|| / ||expected||."""
    return float((found - expected).norm() / expected.norm())


def cores(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every trained sigma, by name."""
    return {n: p for n, p in model.named_parameters() if (".lora_diag." in n or ".kasa_sigma." in n)}


def trained(model: Any, steps: int = 10) -> tuple[float, float]:
    """Train on the fixed inputs; the loss before and after."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    losses = []
    for _ in range(steps):
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    return losses[0], losses[-1]


def outcome(case: Callable[[], str]) -> str:
    """The result of a case, or the error that it raises, verbatim."""
    try:
        return case()
    except Exception as fault:  # whatever PEFT or kasatune raise is the result here
        text = (str(fault).strip().splitlines() or [""])[0]
        return f"{type(fault).__name__}: {text if len(text) <= 160 else text[:157] + '...'}"


def both(what: str, case: Callable[[Make], str]) -> Row:
    """A row with the same case for PEFT and for kasatune."""
    return Row(what, outcome(lambda: case(pefts)), outcome(lambda: case(ours)))


@contextmanager
def counted() -> Iterator[list[float]]:
    """Collects one entry for every decomposition that is asked of PyTorch."""
    calls: list[float] = []
    originals = {name: getattr(torch.linalg, name) for name in ("svd", "eigh", "eigvalsh", "svdvals", "cholesky", "qr")}

    def counting(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            calls.append(time.perf_counter())
            return function(*arguments, **options)

        return call

    for name, function in originals.items():
        setattr(torch.linalg, name, counting(function))
    try:
        yield calls
    finally:
        for name, function in originals.items():
            setattr(torch.linalg, name, function)


# Bases


def quantized(kind: str, folder: Path) -> Row:
    """A quantized base: is KaSA there at all, does it train, and does switching it off give the base?"""

    def case(make: Make) -> str:
        settings = quantization_config(kind, keep=["lm_head"])
        base = LlamaForCausalLM.from_pretrained(
            folder, quantization_config=settings, dtype=torch.float32, device_map="cpu"
        )
        before = logits(base)
        model = adapted(base, make)
        moved = apart(logits(model), before)
        start = {name: core.detach().clone() for name, core in cores(model).items()}
        first, last = trained(model)
        shifts = sum(not torch.equal(core, start[name]) for name, core in cores(model).items())
        with model.disable_adapter():
            off = torch.equal(logits(model), before)
        nature = "KaSA" if start else "**plain LoRA, without a word**"
        return (
            f"{nature}: sigma in {len(start)} of 6 layers ({shifts} moved by training), truncation moves the outputs "
            f"by {moved:.2g}; loss {first:.3f} to {last:.3f} in 10 steps; disabled, the base {_bits(off)}"
        )

    words = {
        "nf4": "4-bit base (bitsandbytes NF4)",
        "int8": "8-bit base (bitsandbytes)",
        "torchao-int8": "int8 weight-only base (torchao)",
    }
    return both(words[kind], case)


def conv1d() -> Row:
    def case(make: Make) -> str:
        base = gpt2()
        before = logits(base)
        model = adapted(base, make, target_modules=["c_attn", "c_proj"])
        first, last = trained(model)
        moved = apart(logits(model), before)
        return f"KaSA in {len(cores(model))} layers; loss {first:.3f} to {last:.3f}; outputs moved by {moved:.2g}"

    return both("Conv1D layers (GPT-2)", case)


# Adapters come and go


def switched_off() -> Row:
    def case(make: Make) -> str:
        base = llama()
        before = logits(base)
        model = adapted(base, make)
        trained(model)
        with model.disable_adapter():
            off = logits(model)
        gone = logits(model.unload())
        return f"`disable_adapter()`: {_away(off, before)}; `unload()`: {_away(gone, before)}"

    return both("disable, unload: distance from the base's outputs", case)


def merged() -> Row:
    def case(make: Make) -> str:
        base = llama()
        before = logits(base)
        model = adapted(base, make)
        trained(model)
        adapted_outputs = logits(model)
        model.merge_adapter()
        model.unmerge_adapter()
        again = _away(logits(model), adapted_outputs)
        with model.disable_adapter():
            return f"adapter after it: {again}; base after it: {_away(logits(model), before)}"

    return both("merge, then unmerge", case)


def two_ranks() -> Row:
    def case(make: Make) -> str:
        model = adapted(llama(), make)
        trained(model)
        before = logits(model)
        model.add_adapter("second", make(r=2 * RANK, target_modules=TARGETS))
        model.set_adapter("default")
        return f"the first one's outputs, once the second is added: {_away(logits(model), before)}"

    return both(f"two adapters of rank {RANK} and {2 * RANK}", case)


def with_a_lora_adapter(folder: Path) -> Row:
    def with_peft() -> str:
        model = adapted(llama(), pefts)
        model.add_adapter("lora", LoraConfig(r=RANK, target_modules=TARGETS))
        return "both adapters on one base"

    def with_ours() -> str:
        model = adapted(llama(), ours)
        trained(model)
        expected = logits(model)
        export_adapter(model, folder / "kasa-as-lora", to="lora")
        other = get_peft_model(llama(), LoraConfig(r=RANK, target_modules=TARGETS))
        other.load_adapter(str(folder / "kasa-as-lora"), "kasa")
        other.set_adapter("kasa")
        return f"as its exported LoRA: outputs {_away(logits(other), expected)}"

    return Row("together with a plain LoRA adapter, on one base", outcome(with_peft), outcome(with_ours))


# Files


def reloaded(folder: Path) -> list[Row]:
    """Load a saved adapter onto the base: decompositions, seconds, and whether the outputs are the same bits."""

    def case(make: Make, *, low_memory: bool) -> str:
        hidden = 512
        model = adapted(llama(hidden), make)
        trained(model, steps=2)
        expected = logits(model)
        place = folder / f"reload-{make.__name__}-{low_memory}"
        model.save_pretrained(place)
        base = llama(hidden)
        with counted() as calls:
            start = time.perf_counter()
            again = PeftModel.from_pretrained(base, str(place), low_cpu_mem_usage=low_memory)
            took = time.perf_counter() - start
            at_load = len(calls)
            found = logits(again)
        later = len(calls) - at_load
        return (
            f"{at_load} decompositions at load, {later} in the first forward; load {duration(took)}; outputs "
            f"{_away(found, expected)}"
        )

    names = {False: "reload (6 layers of 512 and 1024)", True: "reload with `low_cpu_mem_usage=True`"}
    return [both(what, lambda make, low=low: case(make, low_memory=low)) for low, what in names.items()]


def exported(folder: Path) -> Row:
    def with_peft() -> str:
        model = adapted(llama(), pefts)
        trained(model)
        expected = logits(model)
        peft.save_as_lora(folder / "peft-lora", model, rank=2 * RANK)
        return f"outputs {_away(logits(PeftModel.from_pretrained(llama(), str(folder / 'peft-lora'))), expected)}"

    def with_ours() -> str:
        model = adapted(llama(), ours)
        trained(model)
        expected = logits(model)
        export_adapter(model, folder / "lora", to="lora")
        found = PeftModel.from_pretrained(llama(), str(folder / "lora"))
        return f"rank {2 * RANK} on the untouched base: outputs {_away(logits(found), expected)}"

    return Row("as a plain LoRA (`peft.save_as_lora`; `export_adapter`)", outcome(with_peft), outcome(with_ours))


# The penalty


class AddsPenalty(Trainer):
    """The Trainer with PEFT's penalty added to the loss, as PEFT's documentation asks for."""

    def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
        """The task's loss and the penalty."""
        found = super().compute_loss(model, inputs, *arguments, **options)
        return found + self.model.base_model._get_kasa_loss()  # pyright: ignore


def penalty_share(make: Make, trainer: type[Trainer], accumulation: int, folder: Path) -> float:
    """How often the penalty's gradient of sigma, 2 beta sigma, is in one optimizer step.

    One step of plain gradient descent with and without the penalty: what differs is its gradient.
    """
    rows = Dataset.from_list([{"input_ids": row.tolist(), "labels": row.tolist()} for row in IDS])
    after: dict[float, Tensor] = {}
    start = torch.empty(0)
    for beta in (0.0, 0.1):
        model = adapted(llama(), make, beta=beta, gamma=0.0)
        start = torch.cat([core.detach().flatten() for core in cores(model).values()])
        arguments = TrainingArguments(
            output_dir=str(folder / "trainer"),
            max_steps=1,
            per_device_train_batch_size=len(IDS) // accumulation,
            gradient_accumulation_steps=accumulation,
            learning_rate=1.0,
            optim="sgd",
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        )
        made = trainer(model=model, args=arguments, train_dataset=rows)
        made.remove_callback(PrinterCallback)
        made.train()
        after[beta] = torch.cat([core.detach().flatten() for core in cores(model).values()])
    once = 2 * 0.1 * start
    return float((after[0.0] - after[0.1]) @ once / once.square().sum())


def penalty(folder: Path) -> list[Row]:
    def stock(make: Make) -> str:
        return f"{penalty_share(make, Trainer, 1, folder):.2f} times"

    def accumulated(make: Make, trainer: type[Trainer]) -> str:
        shares = [f"{penalty_share(make, trainer, pieces, folder):.2f}" for pieces in (1, 2, 4)]
        return "{} times for 1, {} for 2, {} for 4 pieces".format(*shares)

    return [
        both("the penalty's gradient in one step of the stock `Trainer`", stock),
        Row(
            "the same under gradient accumulation (PEFT: its penalty added in `compute_loss`)",
            outcome(lambda: accumulated(pefts, AddsPenalty)),
            outcome(lambda: accumulated(ours, Trainer)),
        ),
    ]


# Precision


def sixteen_bits() -> Row:
    """What is held for W - tail, against W - tail in float64 of the bfloat16 weight, over the tail's own norm."""

    def case(make: Make) -> str:
        generator = torch.Generator().manual_seed(0)
        base = nn.Sequential(nn.Linear(768, 768, bias=False)).to(torch.bfloat16)
        with torch.no_grad():
            base[0].weight.copy_(0.02 * torch.randn(768, 768, generator=generator))
        W = base[0].weight.detach().double()
        tail = W - oracle.world_weight(W, 8, "paper")
        layer = adapted(base, make, r=8, target_modules=["0"]).base_model.model[0]
        held = layer.base_layer.weight.double()
        if make is ours:
            held = held - layer.tail("default").double()
        return f"error {float((held - (W - tail)).norm() / tail.norm()):.2g} of the tail's norm"

    return both("truncation of a bfloat16 weight, 768 x 768, r = 8", case)


# A language model


def language_model(runs: Path) -> list[Row]:
    """The loss of SmolLM2 right after attaching, and what 40 steps on E2E made it forget, of finished runs of seed 0.

    Raises:
        SystemExit: a run is missing.
    """
    records = [json.loads(line) for line in runs.read_text(encoding="utf-8").splitlines()]

    def losses(arm: str, when: str) -> dict[str, float]:
        key = {"arm": arm, "rate": 0.004, "seed": 0, "steps": 40, "confirm": False}
        record = next((record for record in records if key.items() <= record.items()), None)
        if record is None:
            raise SystemExit(f"{runs} has no run of {arm} at rate 0.004 with seed 0; see --help")
        # a method that starts as the base has no scores of its own for the start
        return record[when] or record["base"]

    def cell(arm: str, when: str) -> str:
        values = losses(arm, when)
        return f"E2E {values['e2e']:.3f}, unrelated text {values['unrelated']:.3f}"

    def row(what: str, when: str) -> Row:
        ours = f"`kasa` {cell('kasa', when)}; `akasa` {cell('akasa-0.02', when)}"
        return Row(f"{what} (untouched base: {cell('kasa', 'base')})", cell("peft-kasa", when), ours)

    return [
        row("SmolLM2-135M, r = 8 in all linear layers: loss right after attaching", "start"),
        row("the same after 40 steps of 8 rows of E2E", "end"),
    ]


def _bits(same: bool) -> str:
    return "bit for bit" if same else "**not** bit for bit"


def _away(found: Tensor, expected: Tensor) -> str:
    return "equal bits" if torch.equal(found, expected) else f"differ by {apart(found, expected):.2g}"


def measure() -> list[Row]:
    """Every case, in the order of the page."""
    with tempfile.TemporaryDirectory() as place, quiet(lambda text: None):
        folder = Path(place)
        llama().save_pretrained(folder / "base")
        return [
            *(quantized(kind, folder / "base") for kind in ("nf4", "int8", "torchao-int8")),
            conv1d(),
            switched_off(),
            merged(),
            two_ranks(),
            with_a_lora_adapter(folder),
            *reloaded(folder),
            exported(folder),
            *penalty(folder),
            sixteen_bits(),
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, default=PAGE, help="where the page goes")
    parser.add_argument("--forgetting", type=Path, help="runs of python -m benchmarks.forgetting, for two more rows")
    given = parser.parse_args()
    page: Path = given.page
    further = language_model(given.forgetting) if given.forgetting else []
    rows = [*measure(), *further]
    facts = machine()
    names = ", ".join(f"{name} {facts[name]}" for name in ("python", "torch", "transformers", "peft", "kasatune"))
    more = ", ".join(f"{name} {version(name)}" for name in ("bitsandbytes", "torchao"))
    text = "\n".join(
        [
            "# PEFT's KaSA and kasatune's, over the same cases",
            "",
            f"{datetime.now(UTC).date().isoformat()}, {facts['processor']}, {facts['threads']} threads; {names}, "
            f"{more}.",
            "",
            "Made by `python -m benchmarks.against_peft`: tiny models with random weights, one process. "
            f"{FURTHER if further else ''}PEFT's KaSA is "
            "`LoraConfig(kasa_config=peft.KasaConfig(...))`, kasatune's is `KasaConfig(...)`, with the same rank "
            f"({RANK} unless a row says otherwise), alpha, beta, gamma and target layers. An error is quoted as it was "
            "raised. Differences are relative: the norm of what differs over that of what was expected.",
            "",
            "| what | PEFT's KaSA | kasatune |",
            "|---|---|---|",
            *(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows),
            "",
        ]
    )
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
