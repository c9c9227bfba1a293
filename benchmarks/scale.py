"""Estimate memory and time of large models: the tables of docs/scale.md.

python -m benchmarks.scale
"""

from __future__ import annotations

from dataclasses import dataclass

GIB, MIB = 2**30, 2**20
RANK = 16
TOKENS = 4096
"""Of the rows that a process computes at once."""
PER_MULTIPLICATION = 1.9e-11
"""Seconds of a decomposition / (min(out, in)^2 max(out, in)): 2048 x 2048, docs/results/benchmarks/tails.md."""
SPEED = 0.4 * 989e12
"""Multiplications and additions a second: two fifths of an H100's bfloat16 peak, an assumption."""


@dataclass(frozen=True)
class Model:
    """A Llama: its shapes.

    Attributes:
        name: in the tables.
        parameters: in all.
        hidden: width of a block.
        inner: width within its MLP.
        kv: width of keys and values.
        layers: number of blocks.
        vocabulary: number of tokens.
    """

    name: str
    parameters: float
    hidden: int
    inner: int
    kv: int
    layers: int
    vocabulary: int = 128256

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(out, in) of the linear layers of a block."""
        return (
            [(self.hidden, self.hidden)] * 2 + [(self.kv, self.hidden)] * 2 + [(self.inner, self.hidden)] * 3
        )  # q o, k v, gate up down

    @property
    def trained(self) -> int:
        """Numbers in A and B: r (out + in); a tail has as many."""
        return RANK * self.layers * sum(rows + columns for rows, columns in self.shapes)

    @property
    def decomposition(self) -> float:
        """Seconds to decompose every linear layer on two cores."""
        return PER_MULTIPLICATION * self.layers * sum(min(s) ** 2 * max(s) for s in self.shapes)

    def device_bytes(self, processes: int) -> dict[str, float]:
        """What one of `processes` holds on its device: bfloat16 base, float32 adapters, gradient checkpointing."""
        block = 2 * self.parameters / self.layers
        return {
            "base": 2 * self.parameters / processes,
            "adapter, tail, gradient, Adam": (4 + 4 + 4 + 8) * self.trained / processes,
            "gathered": 2 * block if processes > 1 else 0.0,
            "activations": 2 * TOKENS * self.hidden * self.layers
            + 2 * TOKENS * (8 * self.hidden + 4 * self.inner)
            + 6 * TOKENS * self.vocabulary,
        }


MODELS = (
    Model("8B", 8.03e9, 4096, 14336, 1024, 32),
    Model("70B", 70.6e9, 8192, 28672, 1024, 80),
    Model("405B", 405.9e9, 16384, 53248, 1024, 126),
)


def shown(seconds: float) -> str:
    """Hours, or minutes below one hour."""
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def sizes() -> list[str]:
    """What rank 16 on all linear layers takes in files, and the decomposition."""
    lines = ["| model | trained numbers | tails | a checkpoint | decomposition, 2 cores |", "|---|---|---|---|---|"]
    for model in MODELS:
        tails, checkpoint = 4 * model.trained, 12 * model.trained
        lines.append(
            f"| {model.name} | {model.trained / 1e6:.0f} million | {tails / MIB:.0f} MiB | {checkpoint / GIB:.2f} GiB "
            f"| {shown(model.decomposition)} |"
        )
    return lines


def memory() -> list[str]:
    """What one device holds, by number of processes."""
    names = list(MODELS[0].device_bytes(1))
    lines = [f"| model | processes | {' | '.join(names)} | sum |", "|---|---" + "|---" * (len(names) + 1) + "|"]
    for model in MODELS:
        for processes in (1, 8, 16, 64):
            parts = model.device_bytes(processes)
            if sum(parts.values()) < 160 * GIB:
                cells = " | ".join(f"{value / GIB:.1f}" for value in parts.values())
                lines.append(f"| {model.name} | {processes} | {cells} | {sum(parts.values()) / GIB:.0f} GiB |")
    return lines


def speed() -> list[str]:
    """Tokens a second of one device: 2 P forward, 2 P for activations' gradients, 2 P forward again."""
    lines = ["| model | tokens a second and GPU | 10 million tokens on 8 GPUs |", "|---|---|---|"]
    for model in MODELS:
        rate = SPEED / (6 * model.parameters)
        lines.append(f"| {model.name} | {rate:.0f} | {shown(1e7 / rate / 8)} |")
    return lines


if __name__ == "__main__":
    for table in (sizes(), memory(), speed()):
        print("\n".join(table), end="\n\n")
