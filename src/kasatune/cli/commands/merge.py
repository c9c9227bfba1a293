from __future__ import annotations

from kasatune.cli.arguments import AdapterDirectory, BaseModel, NewDirectory
from kasatune.cli.console import results_only, say


def command(directory: AdapterDirectory, out: NewDirectory, base: BaseModel = None) -> None:
    """Merge an adapter into its base and write a plain transformers checkpoint.

    Example: kasatune merge runs/rte-kasa --out models/rte
    """
    with results_only():
        from kasatune.adapter_tools.merge import merge

        done = merge(directory, out, base)
    replaced = f", {len(done.replaced)} parameters replaced" if done.replaced else ""
    say(f"{done.out}: {done.layers} layers merged{replaced}; rounding loses up to {done.rounding:.2g} of an update")
