"""Error of the truncation W - tail in 16 bits, folded and attached, compared with float64.

python -m benchmarks.truncation_error
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import torch
from peft import get_peft_model
from torch import Tensor, nn

from benchmarks.harness import machine
from benchmarks.models import minilm
from kasatune import KasaConfig
from kasatune.kasa import oracle

RESULT = Path(__file__).parents[1] / "docs" / "results" / "truncation-error.md"
RANK = 8
TOKENS = 1024


class Errors(NamedTuple):
    """What is left of a truncation, each relative to the tail's own size.

    Args:
        weight: || held - (W - tail) || / || tail ||, Frobenius; `held` is the base weight less an attached tail.
        output: || y - (W - tail) x || / || tail x ||, y in the dtype of the layer.
        floor: the same of a layer without adapter against its own W x: what rounding y alone costs.
        weight_share: <W - held, tail> / || tail ||^2, the part of the tail that is gone from the weight.
        output_share: <y of the bare layer - y, tail x> / || tail x ||^2, the part that is gone from the output.
    """

    weight: float
    output: float
    floor: float
    weight_share: float
    output_share: float


def measure(W: Tensor, x: Tensor, truncation: str) -> Errors:
    """Errors of one layer in the dtype of W (out, in); x (tokens, in)."""
    base = nn.Linear(W.shape[1], W.shape[0], bias=False).to(W.dtype)
    with torch.no_grad():
        base.weight.copy_(W)
        bare = base(x).double()
    with warnings.catch_warnings():
        # Folding in 16 bits is what is measured here; it need not be advised against.
        warnings.simplefilter("ignore", UserWarning)
        model = get_peft_model(nn.Sequential(base), KasaConfig(r=RANK, target_modules=["0"], truncation=truncation))
    layer = model.base_model.model[0]
    W, x = W.double(), x.double()
    tail = W - oracle.world_weight(W, RANK, "paper")
    held = layer.base_layer.weight.double()
    if truncation == "attach":
        held = held - layer.kasa_tail_U["default"].double() @ layer.kasa_tail_V["default"].double()
    with torch.no_grad():
        y = model(x.to(base.weight.dtype)).double()
    dropped = x @ tail.T
    return Errors(
        weight=float((held - (W - tail)).norm() / tail.norm()),
        output=float((y - x @ (W - tail).T).norm() / dropped.norm()),
        floor=float((bare - x @ W.T).norm() / dropped.norm()),
        weight_share=float(((W - held) * tail).sum() / tail.square().sum()),
        output_share=float(((bare - y) * dropped).sum() / dropped.square().sum()),
    )


def weights() -> Iterator[tuple[str, Tensor]]:
    """A random matrix of a BERT-base layer's size, and a trained one."""
    generator = torch.Generator().manual_seed(0)
    yield "768 x 768, entries N(0, 0.02^2)", 0.02 * torch.randn(768, 768, generator=generator)
    name = "encoder.layer.1.attention.self.query"
    yield f"384 x 384, MiniLM-L6, {name}", minilm().get_submodule(name).weight.detach().float()


def table() -> list[str]:
    """The lines of the Markdown table."""
    lines = [
        "| weight | dtype | truncation | weight error | output error | output floor | gone from weight "
        "| gone from output |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, W in weights():
        x = torch.randn(TOKENS, W.shape[1], generator=torch.Generator().manual_seed(1))
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            for truncation in ("fold", "attach"):
                errors = measure(W.to(dtype), x.to(dtype), truncation)
                figures = " | ".join(f"{error:.2g}" for error in errors)
                lines.append(f"| {name} | {str(dtype).removeprefix('torch.')} | {truncation} | {figures} |")
    return lines


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    facts = machine()
    versions = ", ".join(f"{name} {facts[name]}" for name in ("python", "torch", "peft", "kasatune"))
    text = "\n".join(
        [
            "# What 16 bits leave of the truncation",
            "",
            f"{datetime.now(UTC).date().isoformat()}, {facts['processor']}, {facts['threads']} threads; {versions}.",
            "",
            "Made by `python -m benchmarks.truncation_error`.",
            "",
            f"KaSA drops the r = {RANK} smallest singular triplets of a weight W. `fold` writes W - tail back in the "
            "dtype of W; `attach` leaves W as it is and stores the tail next to it in float32. The reference is W - "
            "tail in float64, of W as it is held. Every figure is relative to the tail's own size: an error of 1 "
            "means that as much was put in as was to be taken out.",
            "",
            "- weight error: Frobenius norm of (what is held) - (W - tail), over that of the tail.",
            f"- output error: norm of y - (W - tail) x, over that of tail x, for {TOKENS} random inputs in the same "
            "dtype.",
            "- output floor: the same for the layer without any adapter, y against W x: what rounding y costs by "
            "itself.",
            "- gone from weight, gone from output: the part of the tail that the truncation did take out, 1 for all "
            "of it; rounding at random leaves it at 1.",
            "",
            *table(),
            "",
            "An attached tail is held exactly in every dtype. In a forward pass on a 16-bit weight its part goes into "
            "the matrix product before that product rounds, so the output error is the floor and the whole tail is "
            "gone. A folded tail has lost what the weight's rounding swallowed. Where the product with W is rounded "
            "by somebody else before the adapter's part can be added (under autocast, under torch.compile, on a "
            "quantized or hooked base layer), a bfloat16 output keeps of the tail about what folding leaves of it; "
            "the same holds for any small LoRA update there.",
            "",
        ]
    )
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
