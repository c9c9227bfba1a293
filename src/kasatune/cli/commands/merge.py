from __future__ import annotations

from kasatune.cli.arguments import AdapterDirectory, BaseModel, NewDirectory
from kasatune.cli.console import results_only, say
from kasatune.wording import counted


def command(directory: AdapterDirectory, out: NewDirectory, base: BaseModel = None) -> None:
    """Merge an adapter into its base and write a plain transformers checkpoint.

    Example: kasatune merge runs/rte-kasa --out models/rte
    """
    with results_only():
        from kasatune.adapter_tools.merge import merge

        done = merge(directory, out, base)
    replaced = f", {counted(len(done.replaced), 'parameter')} replaced" if done.replaced else ""
    say(
        f"{done.out}: {counted(done.layers, 'layer')} merged{replaced}; rounding loses up to "
        f"{done.rounding:.2g} of an update"
    )
