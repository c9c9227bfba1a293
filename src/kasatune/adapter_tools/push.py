"""The command `kasatune push`: prepare an adapter for the model hub and upload it."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import yaml

from kasatune.adapter_tools.ollama import MODELFILE
from kasatune.adapter_tools.resolve import Source, find_source
from kasatune.adapter_tools.tokenizer import NAMED_TEMPLATES, TOKENIZER_FILES
from kasatune.adapters.adapter_files import CONFIG, WEIGHTS, file_sha256, read_header, read_json, write_json
from kasatune.adapters.certificate import CERTIFICATE, read_certificate, write_certificate
from kasatune.adapters.gguf_export import FILE as GGUF_FILE
from kasatune.errors import InputError, KasatuneError, OutputError, WorkError
from kasatune.io.atomic import write_text
from kasatune.io.model_location import find_model
from kasatune.io.run_layout import ADAPTER, CARD
from kasatune.models.saved_tokenizer import GENERATION_CONFIG
from kasatune.reports.card import adapter_card
from kasatune.reports.run_record import read_run

FILES = (
    *(CONFIG, WEIGHTS, CARD, CERTIFICATE, GENERATION_CONFIG, GGUF_FILE, MODELFILE),
    *TOKENIZER_FILES,
)
"""The files of an adapter that are uploaded, with the folder of named chat templates; nothing else is."""

_FENCE = "---\n"
_TAG = "base_model:adapter:"


class Package(NamedTuple):
    """An adapter as it is uploaded.

    Attributes:
        folder: a temporary copy of its files.
        base: the ID of the base model on the hub.
        sizes: bytes of each file, by its path in the folder, sorted by path.
        left_out: names in the adapter's folder that are not uploaded.
    """

    folder: Path
    base: str
    sizes: dict[str, int]
    left_out: list[str]


@contextmanager
def packaged(directory: Path, base: str | None = None, licence: str | None = None) -> Generator[Package]:
    """Copy the adapter of a run, or an adapter, with the base's hub ID in its configuration, card and certificate.

    Of a run, the stock adapter in adapter/ is taken, and its card is written anew with the run's scores as
    `model-index`. The copy is removed when the block ends; `directory` is not changed.

    Args:
        directory: a run directory or an adapter directory.
        base: the base model on the hub; None to use the one that the recipe or the adapter names.
        licence: the hub's identifier of the licence, such as "apache-2.0"; None leaves the card's as it is.

    Raises:
        InputError: there is no adapter, or no base on the hub is known.
        AdapterError: a file of the adapter is damaged.
    """
    source = find_source(directory, base)
    folder = directory / ADAPTER if source.run is not None else source.given
    if not (folder / CONFIG).is_file():
        raise InputError(
            f"{directory}: there is no {CONFIG} in {folder}; write an adapter with "
            f"`kasatune export {directory} --out DIR` and push DIR"
        )
    read_header(folder)
    hub_base = hub_id_of_base(source)
    with TemporaryDirectory(prefix="kasatune-") as temporary:
        copy = Path(temporary)
        names = sorted(path.name for path in folder.iterdir())
        taken = [name for name in names if name in FILES and (folder / name).is_file()]
        for name in taken:
            shutil.copyfile(folder / name, copy / name)
        if (folder / NAMED_TEMPLATES).is_dir():
            shutil.copytree(folder / NAMED_TEMPLATES, copy / NAMED_TEMPLATES)
            taken.append(NAMED_TEMPLATES)
        config = read_json(copy, CONFIG)
        old_base = config.get("base_model_name_or_path")
        write_json(copy / CONFIG, {**config, "base_model_name_or_path": hub_base})
        _write_certificate(copy, hub_base)
        write_text(copy / CARD, _card(source, copy, old_base, hub_base, licence))
        sizes = {str(path.relative_to(copy)): path.stat().st_size for path in sorted(copy.rglob("*")) if path.is_file()}
        yield Package(copy, hub_base, sizes, [name for name in names if name not in taken])


def hub_id_of_base(source: Source) -> str:
    """The ID on the hub of the base that the user, the recipe or the adapter names.

    Raises:
        InputError: none is named, or the name is of a folder, a file or a package of this machine.
    """
    name = source.base_name
    remedy = "name the model on the hub with --base ORG/NAME"
    if name is None:
        raise InputError(f"{source.given}: the adapter does not name its base model; {remedy}")
    location = find_model(name)
    if location.is_local:
        raise InputError(f"the base model {name} is on this machine only, where nobody else can load it; {remedy}")
    return location.path


def upload(package: Package, repository: str, *, private: bool = False, update: bool = False) -> str:
    """Upload a packaged adapter in one commit; the repository is made if it does not exist.

    Args:
        package: from `packaged`.
        repository: ORG/NAME on the hub.
        private: make a new repository private.
        update: whether files that the repository holds may be replaced.

    Returns:
        The address of the commit.

    Raises:
        OutputError: the repository holds an adapter or weights, and `update` is False.
        WorkError: the hub cannot be reached or refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    hub = HfApi()
    try:
        try:
            held = set(hub.list_repo_files(repository))
        except RepositoryNotFoundError:
            held = set()
        replaced = sorted(held & set(package.sizes) - {CARD})
        if replaced and not update:
            raise OutputError(
                f"{repository} already holds {', '.join(replaced)}; --update replaces them, or name another repository"
            )
        hub.create_repo(repository, private=private, exist_ok=True)
        commit = hub.upload_folder(
            repo_id=repository, folder_path=package.folder, commit_message="Upload adapter with kasatune"
        )
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        remedy = "log in with `hf auth login` or set HF_TOKEN to a token that may write" if status in (401, 403) else ""
        reason = error.server_message or str(error).strip().splitlines()[0]
        raise WorkError(f"the hub refused {repository}: {reason}" + (f"; {remedy}" if remedy else "")) from error
    except KasatuneError:
        raise
    except Exception as error:  # the HTTP library and its errors differ between versions of huggingface_hub
        raise WorkError(f"the hub could not be reached: {error}; nothing was uploaded") from error
    return commit.commit_url


def require_repository_name(name: str) -> None:
    """Check a repository's name.

    Raises:
        InputError: it is not of the form ORG/NAME.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
        valid = name.count("/") == 1
    except HFValidationError:
        valid = False
    if not valid:
        raise InputError(f"{name!r} is not the name of a repository; give ORG/NAME, for example me/my-adapter")


def _write_certificate(folder: Path, base: str) -> None:
    """Replace the base's name and the hash of the configuration, which names the base."""
    if not (folder / CERTIFICATE).is_file():
        return
    certificate = read_certificate(folder)
    certificate["base"]["name"] = base
    if CONFIG in certificate["files"]:
        certificate["files"][CONFIG] = file_sha256(folder / CONFIG)
    write_certificate(folder, certificate)


def _card(source: Source, folder: Path, old_base: object, base: str, licence: str | None) -> str:
    if source.run is not None:
        run = read_run(source.run)
        section: Mapping[str, Any] = {**run.recipe.get("model", {}), "name": base, "gguf_file": None}
        text = adapter_card(dataclasses.replace(run, recipe={**run.recipe, "model": section}), with_run=False)
    elif (folder / CARD).is_file():
        text = (folder / CARD).read_text(encoding="utf-8", errors="replace")
    else:
        text = f"# Adapter for {base}\n\nLoad it with `PeftModel.from_pretrained(base, REPOSITORY)`.\n"
    matter, body = _split(text)
    matter = {"base_model": base, "library_name": "peft", **matter} | {"base_model": base}
    if isinstance(old_base, str) and old_base:
        # code and names of the base in the text, and PEFT's tag
        body = re.sub(rf"(?P<quote>[\"'`]){re.escape(old_base)}(?P=quote)", rf"\g<quote>{base}\g<quote>", body)
        tags = matter.get("tags")
        if isinstance(tags, list):
            matter["tags"] = [f"{_TAG}{base}" if tag == f"{_TAG}{old_base}" else tag for tag in tags]
    if licence is not None:
        matter["license"] = licence
    return f"{_FENCE}{yaml.safe_dump(matter, sort_keys=False, allow_unicode=True)}{_FENCE}{body}"


def _split(card: str) -> tuple[dict[str, Any], str]:
    """Metadata and text of a card; metadata that cannot be parsed is left out."""
    if card.startswith(_FENCE) and _FENCE in card[len(_FENCE) :]:
        head, body = card[len(_FENCE) :].split(_FENCE, 1)
        try:
            matter = yaml.safe_load(head)
        except yaml.YAMLError:
            matter = None
        return (matter if isinstance(matter, dict) else {}), body
    return {}, f"\n{card}"
