"""All measurements that need a GPU, in one command of at most ten minutes on one CUDA device.

python -m benchmarks.gpu [--out FOLDER] [--minutes 10] [--model-file PREFIX] [--rows train.txt] [--small] [--device cpu]
python -m benchmarks.gpu --split MODEL --model-file PREFIX

Decomposition, attaching, loading, a step of wide blocks, training steps of a language model, and KaSA against LoRA over
many seeds. It imports torch, transformers, peft and the core of this project alone. The model travels as parts
PREFIX.000, PREFIX.001, ... of at most 48 MB, which `--split` writes of a GGUF file or of a transformers folder; without
one, a random Llama of the shape of SmolLM2-135M. `--rows` is a file of E2E (`facts||sentence` lines); without one, and
without a tokenizer, random rows. The page and its figures are written to FOLDER, docs/results/benchmarks by default.
What the time does not allow is left out and named on the page. `--small` takes small shapes, for any device.
"""

from __future__ import annotations

import argparse
import gc
import io
import statistics
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, LlamaModel

from benchmarks.harness import RESULTS, Row, duration, publish
from kasatune import KasaConfig, tail_svd
from kasatune.data.prompt_completion import IGNORED, encode_rows
from kasatune.evaluation.causal_loss import learnt_tokens, predicting, token_losses
from kasatune.evaluation.logits_to_keep import kept_logits, logits_to_keep
from kasatune.kasa.functional import initial_factors
from kasatune.kasa.layer import kasa_layers

PART_BYTES = 48_000_000
RANK = 8
PROMPT = "### Context : {}\n### Completion : "
MEANING = "Times are medians; the ratio is ours / peer. Lower is better; the target is its upper bound."
Batch = dict[str, Tensor]


@dataclass
class Bench:
    """What the measurements share.

    Attributes:
        device: where everything is measured.
        small: small shapes and few repetitions.
        deadline: `time.monotonic()` at which no further measurement begins.
        rows: figures so far.
        notes: sentences under the table.
    """

    device: torch.device
    small: bool
    deadline: float
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def add(self, what: str, ours: float, peer: float, target: float | None = None, show: Any = duration) -> None:
        """A figure."""
        self.rows.append(Row(what, show(ours), show(peer), ours / peer if peer else float("inf"), target))
        print(f"{what}: {show(ours)}, {show(peer)}", file=sys.stderr, flush=True)

    def seconds(
        self, call: Callable[[], Any], repetitions: int, undo: Callable[[Any], object] | None = None, warmup: int = 1
    ) -> float:
        """Median seconds of a call, after `warmup` that are not counted."""
        took = []
        for turn in range(warmup + repetitions):
            self.wait()
            start = time.perf_counter()
            result = call()
            self.wait()
            if turn >= warmup:
                took.append(time.perf_counter() - start)
            if undo is not None:
                undo(result)
        return statistics.median(took)

    def wait(self) -> None:
        """Until the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def peak(self) -> int:
        """Largest allocated bytes on the device since `forget`; 0 on a processor."""
        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else 0

    def forget(self) -> None:
        """Free what is not used, and measure memory anew."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def blocks(bench: Bench, hidden: int, layers: int) -> Any:
    """Llama blocks with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=max(hidden // 64, 1),
    )
    with bench.device:
        return LlamaModel(config)


def decomposition(bench: Bench) -> None:
    """`tail_svd` and the full SVD of torch, of one weight."""
    for shape in ((96, 64), (64, 64)) if bench.small else ((1024, 1024), (2048, 2048), (5632, 2048), (4096, 4096)):
        W = torch.randn(shape, device=bench.device) / shape[1] ** 0.5
        ours = bench.seconds(lambda W=W: tail_svd(W, RANK), 2)
        full = bench.seconds(lambda W=W: torch.linalg.svd(W, full_matrices=False), 1, warmup=0)
        bench.add(f"decomposition of {shape[0]} x {shape[1]}, r = {RANK} / torch.linalg.svd", ours, full, 1.0)
        tail = tail_svd(W, RANK)
        error = float((W.double() @ tail.Vh.double().mT - tail.U.double() * tail.S.double()).norm() / W.double().norm())
        if error > 1e-6:
            raise SystemExit(f"tail_svd of {shape} on {bench.device}: relative residual {error:.1e}")


def attaching(bench: Bench) -> None:
    """KaSA here and in PEFT, attached to all linear layers."""
    base = blocks(bench, 64 if bench.small else 2048, 1)
    configs = {
        "ours": lambda: KasaConfig(r=RANK, target_modules="all-linear"),
        "peer": lambda: LoraConfig(r=RANK, target_modules="all-linear", kasa_config=peft.KasaConfig()),
    }
    took = {
        name: bench.seconds(
            lambda make=make: get_peft_model(base, make()), 1, lambda model: model.unload(), warmup=int(name == "ours")
        )
        for name, make in configs.items()
    }
    bench.add(f"attaching to a block of hidden size {base.config.hidden_size} / PEFT's KaSA", **took, target=1 / 4)


def loading(bench: Bench) -> None:
    """A saved adapter of KaSA, and one of LoRA of rank 2r."""
    base = blocks(bench, 64 if bench.small else 2048, 2)
    took = {}
    with tempfile.TemporaryDirectory() as place:
        for name, config in (
            ("ours", KasaConfig(r=RANK, target_modules="all-linear")),
            ("peer", LoraConfig(r=2 * RANK, target_modules="all-linear")),
        ):
            folder = str(Path(place) / name)
            model = get_peft_model(base, config)
            model.save_pretrained(folder, save_embedding_layers=False)
            model.unload()
            took[name] = bench.seconds(
                lambda folder=folder: PeftModel.from_pretrained(base, folder), 3, undo=lambda model: model.unload()
            )
    bench.add(f"loading onto 2 blocks of hidden size {base.config.hidden_size} / PEFT's LoRA of rank 2r", **took)


def wide_step(bench: Bench) -> None:
    """A step of KaSA and of LoRA on wide blocks, in float32 and in bfloat16."""
    hidden, layers, shape = (64, 1, (2, 16)) if bench.small else (4096, 2, (4, 1024))
    ids = torch.randint(0, 512, shape, device=bench.device)
    for dtype in (torch.float32, torch.bfloat16):
        took, memory = {}, {}
        for name, config in (
            ("ours", KasaConfig(r=RANK, target_modules="all-linear")),
            ("peer", LoraConfig(r=RANK, target_modules="all-linear")),
        ):
            bench.forget()
            model = get_peft_model(blocks(bench, hidden, layers).to(dtype), config).train()
            optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

            def step(model: nn.Module = model, optimizer: torch.optim.Optimizer = optimizer) -> None:
                model(input_ids=ids).last_hidden_state.float().square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()

            took[name], memory[name] = bench.seconds(step, 2 if bench.small else 8), bench.peak()
            del model, optimizer, step
        kind = str(dtype).removeprefix("torch.")
        bench.add(f"KaSA / PEFT's LoRA: a step of {layers} blocks of hidden size {hidden}, {kind}", **took, target=1.03)
        if memory["peer"]:
            bench.add(f"the same: peak memory, {kind}", **memory, target=1.05, show=mebibytes)


def mebibytes(number: float) -> str:
    """A number of bytes."""
    return f"{number / 2**20:.0f} MiB"


class Text:
    """A language model and its rows.

    Args:
        bench: what the measurements share.
        prefix: of the parts of the model; None for a random one.
        rows: a file of E2E; None for random rows.
    """

    def __init__(self, bench: Bench, prefix: str | None, rows: Path | None) -> None:
        self.bench, self.tokenizer = bench, None
        if prefix is None:
            self.name, self.model = "a random Llama", _random_llama(small=bench.small)
        else:
            self.name, self.model, self.tokenizer = _from_parts(prefix)
        self.model.to(bench.device)
        self.rows = self._read(rows) if rows is not None and self.tokenizer is not None else self._draw()

    def _read(self, path: Path) -> list[dict[str, list[int]]]:
        pairs = [line.split("||", 1) for line in path.read_text(encoding="utf-8").splitlines() if "||" in line]
        draw = torch.Generator().manual_seed(0)
        chosen = [pairs[row] for row in torch.randperm(len(pairs), generator=draw)[:1200].tolist()]
        tokenizer: Any = self.tokenizer
        return encode_rows(tokenizer, [PROMPT.format(a) for a, _ in chosen], [b for _, b in chosen], 128).rows

    def _draw(self) -> list[dict[str, list[int]]]:
        """Rows with the lengths of E2E's prompts and sentences."""
        draw = torch.Generator().manual_seed(0)
        rows = []
        for _ in range(1200):
            prompt, answer = (int(torch.randint(*bounds, (1,), generator=draw)) for bounds in ((25, 55), (15, 40)))
            ids = torch.randint(0, self.model.config.vocab_size, (prompt + answer,), generator=draw).tolist()
            rows.append({"input_ids": ids, "labels": [IGNORED] * prompt + ids[prompt:]})
        return rows

    def batches(self, rows: Sequence[dict[str, list[int]]], size: int) -> Iterator[Batch]:
        """Padded batches on the device."""
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            longest = max(len(row["input_ids"]) for row in part)
            fill = {"input_ids": 0, "labels": IGNORED}
            batch = {
                key: torch.tensor([row[key] + [value] * (longest - len(row[key])) for row in part])
                for key, value in fill.items()
            }
            mask = [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in part]
            batch["attention_mask"] = torch.tensor(mask)
            yield {key: value.to(self.bench.device) for key, value in batch.items()}


def _random_llama(*, small: bool) -> Any:
    torch.manual_seed(0)
    shape = (256, 64, 128, 2, 4, 2) if small else (49152, 576, 1536, 30, 9, 3)
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    options = dict(zip((*names, "num_key_value_heads"), shape, strict=True))
    return LlamaForCausalLM(LlamaConfig(**options, tie_word_embeddings=True))


def _from_parts(prefix: str) -> tuple[str, Any, Any]:
    """The model in the parts: a GGUF file, or a zip archive of a transformers folder."""
    paths = sorted(Path(prefix).parent.glob(f"{Path(prefix).name}.[0-9][0-9][0-9]"))
    if not paths:
        raise SystemExit(f"--model-file {prefix}: there is no {prefix}.000; write the parts with --split MODEL")
    content = b"".join(path.read_bytes() for path in paths)
    with tempfile.TemporaryDirectory() as place:
        options: dict[str, Any] = {}
        if content[:4] == b"GGUF":
            (Path(place) / "model.gguf").write_bytes(content)
            options = {"gguf_file": "model.gguf"}
        else:
            zipfile.ZipFile(io.BytesIO(content)).extractall(place)
        model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, **options)
        return Path(prefix).name, model, AutoTokenizer.from_pretrained(place, **options)


def split(source: Path, prefix: str) -> list[Path]:
    """Write a GGUF file, or a transformers folder as a zip archive, in parts of at most `PART_BYTES`; their paths."""
    if source.is_dir():
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as writer:
            for path in sorted(path for path in source.iterdir() if path.is_file()):
                writer.write(path, path.name)
        content = archive.getvalue()
    else:
        content = source.read_bytes()
    paths = []
    for number, start in enumerate(range(0, len(content), PART_BYTES)):
        paths.append(Path(f"{prefix}.{number:03}"))
        paths[-1].write_bytes(content[start : start + PART_BYTES])
    return paths


CONFIGS: dict[str, Callable[[], Any]] = {
    "KaSA": lambda: KasaConfig(r=RANK, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
    "LoRA": lambda: LoraConfig(r=RANK, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
}


def language_model(bench: Bench, text: Text) -> None:
    """Steps of a language model: all logits with LoRA, and the learnt tokens' alone with LoRA and with KaSA."""
    size = 4 if bench.small else 32
    batches = list(text.batches(text.rows[: size * (3 if bench.small else 8)], size))
    bench.notes.append(
        f"The language model is {text.name}, float32 weights; batches of {size} rows of E2E or of its lengths."
    )
    for precision in ("float32", "bfloat16"):
        took: dict[str, float] = {}
        memory: dict[str, int] = {}
        losses: dict[str, float] = {}
        for name, method, keep in (("peer", "LoRA", False), ("LoRA", "LoRA", True), ("KaSA", "KaSA", True)):
            bench.forget()
            torch.manual_seed(0)
            model = get_peft_model(text.model, CONFIGS[method]()).train()
            optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-4)
            with torch.autocast(bench.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                losses[name] = float(training_loss(model, batches[0], keep=keep).detach())

            def epoch(
                model: Any = model, optimizer: Any = optimizer, keep: bool = keep, precision: str = precision
            ) -> None:
                for batch in batches:
                    with torch.autocast(bench.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                        loss = training_loss(model, batch, keep=keep)
                    loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()

            took[name], memory[name] = bench.seconds(epoch, 2) / len(batches), bench.peak()
            model.unload()
            del model, optimizer, epoch
        if precision == "float32" and abs(losses["LoRA"] - losses["peer"]) > 1e-4:
            raise SystemExit(f"the losses differ: {losses}")
        for name in ("LoRA", "KaSA"):
            what = f"language model, {name}, learnt tokens alone / PEFT's LoRA, all logits, {precision}"
            bench.add(f"{what}: a step", took[name], took["peer"], 1.0)
            if memory["peer"]:
                bench.add(f"{what}: peak memory", memory[name], memory["peer"], 1.0, show=mebibytes)


def training_loss(model: Any, batch: Batch, *, keep: bool) -> Tensor:
    """The mean loss of the learnt tokens of a batch."""
    if not keep:
        return model(**batch).loss
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    with logits_to_keep(model, predicting(batch["labels"])):
        logits = model(**inputs, use_cache=False).logits
    return token_losses(logits, batch["labels"]) / learnt_tokens(batch["labels"])


def seeds(bench: Bench, text: Text) -> None:
    """KaSA and LoRA from many seeds: the loss of held-out rows after training on the same rows."""
    size, train_rows, most = (4, 12, 2) if bench.small else (32, 512, 20)
    held_out = list(text.batches(text.rows[-(8 if bench.small else 256) :], size))
    results: dict[str, list[float]] = {}
    start = time.monotonic()
    for number, (name, make) in enumerate(CONFIGS.items()):
        model = get_peft_model(text.model, make())
        until = time.monotonic() + bench.left / (len(CONFIGS) - number)
        values: list[float] = []
        while len(values) < most and (len(values) < 2 or time.monotonic() < until):
            redraw(model, len(values))
            values.append(_train_and_score(bench, text, model, train_rows, size, len(values), held_out))
        results[name], most = values, len(values)
        model.unload()
    differences = [a - b for a, b in zip(*results.values(), strict=False)]
    means = [statistics.mean(values[: len(differences)]) for values in results.values()]
    what = f"loss of held-out rows after {train_rows} rows, mean of {len(differences)} seeds, KaSA / LoRA"
    bench.add(what, *means, show=lambda value: f"{value:.4f}")
    bench.notes.append(
        f"KaSA - LoRA over {len(differences)} seeds, each with the same rows in the same order: "
        f"{statistics.mean(differences):+.4f} nats, standard error "
        f"{statistics.stdev(differences) / len(differences) ** 0.5:.4f}; KaSA is lower for "
        f"{sum(value < 0 for value in differences)} of them. It took {time.monotonic() - start:.0f} s. Loss per seed, "
        + "; ".join(f"{name}: {_list(values)}" for name, values in results.items())
        + "."
    )


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)


def redraw(model: Any, seed: int) -> None:
    """Initialize the adapter of a model anew from the seed; its tails stay."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.reset_lora_parameters("default", True)
    for _, layer in kasa_layers(model):
        settings = layer.settings["default"]
        factors = initial_factors(layer.out_features, layer.in_features, settings.r, settings.core, generator=generator)
        for name, value in zip(("kasa_A", "kasa_sigma", "kasa_B"), factors, strict=True):
            getattr(layer, name)["default"].data.copy_(value)


def _train_and_score(
    bench: Bench, text: Text, model: Any, rows: int, size: int, seed: int, held_out: Sequence[Batch]
) -> float:
    draw = torch.Generator().manual_seed(seed)
    order = [text.rows[row] for row in torch.randperm(rows, generator=draw).tolist()]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-4)
    model.train()
    for batch in text.batches(order, size):
        with torch.autocast(bench.device.type, torch.bfloat16, enabled=bench.device.type == "cuda"):
            loss = training_loss(model, batch, keep=True)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in held_out:
            labels = batch["labels"]
            inputs = {key: value for key, value in batch.items() if key != "labels"}
            total += float(token_losses(kept_logits(model, inputs, predicting(labels))[None], labels))
            count += learnt_tokens(labels)
    return total / count


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the page")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--model-file", metavar="PREFIX")
    parser.add_argument("--rows", type=Path, metavar="FILE")
    parser.add_argument("--split", type=Path, metavar="MODEL", help="write the parts of a model and end")
    parser.add_argument("--small", action="store_true", help="small shapes, to try it out")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args(arguments)
    if options.split is not None:
        if options.model_file is None:
            parser.error("--split: give the parts' names as --model-file PREFIX")
        print("\n".join(map(str, split(options.split, options.model_file))))
        return
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device; --device cpu --small tries the command out on a processor")
    bench = Bench(torch.device(options.device), options.small, time.monotonic() + 60 * options.minutes)
    parts: list[tuple[str, Callable[[Bench], None], float]] = [
        ("decomposition", decomposition, 30),
        ("attaching", attaching, 60),
        ("loading", loading, 20),
        ("wide steps", wide_step, 30),
    ]
    left_out = [name for name, measure, least in parts if not _measured(bench, measure, least)]
    text = Text(bench, options.model_file, options.rows)
    for name, of_text, least in (("language model", language_model, 60), ("many seeds", seeds, 45)):
        if not _measured(bench, lambda given, of_text=of_text: of_text(given, text), least):
            left_out.append(name)
    if left_out:
        bench.notes.append(f"Left out, because {options.minutes:g} minutes did not suffice: {', '.join(left_out)}.")
    where = torch.cuda.get_device_name(bench.device) if bench.device.type == "cuda" else str(bench.device)
    publish(
        "gpu",
        f"On one device: {where}",
        "python -m benchmarks.gpu" + (" --small" if options.small else ""),
        bench.rows,
        "\n\n".join(bench.notes),
        quick=options.small,
        meaning=MEANING + (" Shapes are small (`--small`), to try the command out." if options.small else ""),
        folder=options.out,
    )


def _measured(bench: Bench, measure: Callable[[Bench], None], least: float) -> bool:
    """Measure if at least this many seconds are left; whether it was done."""
    if bench.left < (0 if bench.small else least):
        return False
    bench.forget()
    measure(bench)
    return True


if __name__ == "__main__":
    main()
