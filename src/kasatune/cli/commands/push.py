from __future__ import annotations

from typing import Annotated

import typer

from kasatune.cli.arguments import AdapterDirectory, BaseModel, Json
from kasatune.cli.console import note, print_json, print_table, results_only, say
from kasatune.wording import counted


def command(
    directory: AdapterDirectory,
    repository: Annotated[str, typer.Argument(metavar="ORG/NAME", help="The repository.", show_default=False)],
    base: BaseModel = None,
    licence: Annotated[
        str | None,
        typer.Option("--license", metavar="ID", help="Licence for the card, such as apache-2.0.", show_default=False),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Upload; without it the files are only listed.")] = False,
    update: Annotated[bool, typer.Option("--update", help="Replace files that the repository holds.")] = False,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    json: Json = False,
) -> None:
    """Upload an adapter with its card, tokenizer, chat template and certificate to the model hub.

    Without --yes nothing is sent: the command lists the files and prints the card.

    Example: kasatune push runs/rte-kasa me/rte-kasa --license apache-2.0
    """
    with results_only():
        from kasatune.adapter_tools.push import packaged, require_repository_name, upload

        require_repository_name(repository)
    with packaged(directory, base, licence) as package:
        address = None
        if yes:
            with results_only():
                address = upload(package, repository, private=private, update=update)
        if json:
            facts = {"repository": repository, "base_model": package.base, "files": package.sizes}
            print_json({**facts, "left_out": package.left_out, "uploaded": address})
            return
        if address is None:
            print_table(["file", "bytes"], [[name, f"{size:,}"] for name, size in package.sizes.items()], numbers=1)
            say()
            say((package.folder / "README.md").read_text(encoding="utf-8"))
            note(f"nothing was sent; --yes uploads {counted(len(package.sizes), 'file')} to {repository}")
        else:
            say(f"{address}: {counted(len(package.sizes), 'file')}, adapter of {package.base}")
        if package.left_out:
            note(f"left out: {', '.join(package.left_out)}")
