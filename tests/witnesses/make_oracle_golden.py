"""Write oracle_golden.json beside this file: python -m tests.witnesses.make_oracle_golden.

The numbers are those of the paper's equations in float64 (kasatune.kasa.oracle). They change only when the equations
or the problem change; a difference in anything else is a fault.
"""

from __future__ import annotations

import json
from pathlib import Path

from tests.witnesses.oracle_problem import CASES, inputs, solve

GOLDEN = Path(__file__).with_name("oracle_golden.json")


def golden() -> dict:
    """Inputs and the solution of every case, as plain data."""
    tensors = inputs()
    return {
        "inputs": {name: tensor.tolist() for name, tensor in tensors.items()},
        "solutions": {f"{convention}-{core}": solve(tensors, convention, core) for convention, core in CASES},
    }


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(golden()) + "\n", encoding="utf-8")
    print(GOLDEN)
