"""Verify an adapter: hashes, base fingerprint, reload, export and merge parity."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from kasatune.adapter_tools.export import export_gguf
from kasatune.adapter_tools.merge import merge
from kasatune.adapter_tools.resolve import (
    Source,
    find_source,
    has_adapter,
    load_base_model,
    local_base,
    model_class,
)
from kasatune.adapter_tools.tokenizer import load_tokenizer, saved_tokenizer
from kasatune.adapters.adapter_files import AdapterFiles, file_sha256, read_header, read_tensors
from kasatune.adapters.attach import sketch_distances
from kasatune.adapters.certificate import CERTIFICATE, describe, read_certificate
from kasatune.adapters.embedding_tensors import stored_vocabulary
from kasatune.adapters.export import export_adapter
from kasatune.adapters.gguf_export import architecture_of
from kasatune.adapters.load import load_adapter, read_checked, twin_for_loading
from kasatune.adapters.lora_settings import residual_init
from kasatune.adapters.parity import Outputs, fixed_outputs
from kasatune.adapters.parity_report import class_and_sha256, output_parity
from kasatune.adapters.recognize_format import FORMATS
from kasatune.errors import CheckError, InputError, KasatuneError
from kasatune.evaluation.evaluate import check_recorded_scores, is_run
from kasatune.evaluation.padded_batch import padded_batch
from kasatune.experiments.compare.verify_comparison import is_comparison, verified
from kasatune.io.library_noise import quiet
from kasatune.io.run_layout import ADAPTER, NATIVE
from kasatune.models.padding import padding_side
from kasatune.wording import counted

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Check(NamedTuple):
    """One line of a verification.

    Attributes:
        name: what was checked.
        passed: None if there was nothing to check.
        figure: the measurement, or why there is none.
    """

    name: str
    passed: bool | None
    figure: str


@dataclass(frozen=True)
class _Subject:
    """The loaded adapter and base, which the checks share."""

    source: Source
    files: AdapterFiles
    base: PreTrainedModel
    alone: Outputs
    adapted: Outputs


def verify(directory: Path, base: str | None = None) -> list[Check]:
    """Check files, hashes, base, reload, exports and merge of a run or an adapter; one line for each, with its figure.

    For a comparison, the scores of its runs and everything computed from them are recomputed. For a run, recipe, rows,
    base model and scores are recomputed from its files first.

    Leaves no files behind. If a check fails that the others depend on, its line is the last.

    Args:
        directory: a run, a comparison, or an adapter in any format that `load_adapter` reads.
        base: name or folder of the base; by default the one that the recipe or the adapter names.

    Raises:
        InputError: there is no adapter.
    """
    if is_comparison(directory):
        return [Check(*line) for line in verified(directory)]
    checks = [Check(*line) for line in check_recorded_scores(directory, base)] if is_run(directory) else []
    if checks and not has_adapter(directory):  # of a method that writes a complete checkpoint
        return checks
    source = find_source(directory, base)
    with quiet(), torch.random.fork_rng(devices=[]):
        for check in _checks(source):
            checks.append(check)
    return checks


def _checks(source: Source) -> Iterator[Check]:
    folders = [source.adapter]
    if source.run is not None and source.adapter.name == NATIVE and (source.run / ADAPTER).is_dir():
        folders.append(source.run / ADAPTER)
    for folder in folders:
        check = _attempt(f"files of {folder.name}", lambda folder=folder: _files(folder))
        yield check
        if not check.passed:
            return
        yield _attempt(f"hashes of {folder.name}", lambda folder=folder: _hashes(folder))
    model: list[PreTrainedModel] = []
    check = _attempt("base loads", lambda: _load_base(source, model))
    yield check
    if not check.passed:
        return
    files = read_tensors(read_checked(source.adapter)[0])
    for folder in folders:
        yield _attempt(f"base of {folder.name}", lambda folder=folder: _fingerprint(folder, files, model[0]))
    subject: list[_Subject] = []
    check = _attempt("reload", lambda: _reload(source, files, model[0], subject))
    yield check
    if not check.passed:
        return
    yield _attempt("base untouched", lambda: _untouched(subject[0]))
    yield _attempt("padded batch", lambda: _padded_batch(subject[0]))
    for folder in folders[1:]:
        yield _attempt(f"{folder.name} gives the same outputs", lambda folder=folder: _same(subject[0], folder))
    for to in FORMATS:
        yield _attempt(f"export to {to}", lambda to=to: _export(subject[0], to))
    yield _attempt("export to gguf", lambda: _export_gguf(subject[0]))
    yield _attempt("merge", lambda: _merge(subject[0]))


def _attempt(name: str, check: Callable[[], tuple[bool | None, str]]) -> Check:
    try:
        return Check(name, *check())
    except KasatuneError as fault:
        return Check(name, False, str(fault))


def _files(folder: Path) -> tuple[bool, str]:
    header, kind, layers = read_checked(folder)
    files = read_tensors(header)
    count = sum(tensor.numel() for tensor in files.tensors.values())
    return True, f"{kind}, {counted(len(layers), 'layer')}, {counted(count, 'number')}, all finite"


def _hashes(folder: Path) -> tuple[bool | None, str]:
    if not os.path.lexists(folder / CERTIFICATE):
        return None, f"no {CERTIFICATE} to compare the files with"
    recorded = read_certificate(folder)["files"]
    if not recorded:
        return False, f"{CERTIFICATE} names no files"
    # A name read from a file is never used as a path: it is only compared with the names of the adapter's files.
    own = {path.name: path for path in folder.iterdir() if path.is_file()}
    changed = [name for name, digest in recorded.items() if name not in own or file_sha256(own[name]) != digest]
    if changed:
        return False, f"changed since they were written: {', '.join(sorted(map(str, changed)))}"
    return True, f"{counted(len(recorded), 'file')} as written"


def _load_base(source: Source, loaded: list[PreTrainedModel]) -> tuple[bool, str]:
    model = load_base_model(source)
    loaded.append(model)
    return True, f"{type(model).__name__} from {source.base_name}, {str(model.dtype).removeprefix('torch.')}"


def _fingerprint(folder: Path, files: AdapterFiles, base: PreTrainedModel) -> tuple[bool | None, str]:
    """Compare the digest of the base if one was recorded for its class, else samples of its adapted weights."""
    recorded: Any = read_certificate(folder)["base"] if os.path.lexists(folder / CERTIFICATE) else {}
    expected, (base_class, sha256) = recorded.get("sha256"), class_and_sha256(base, files)
    if isinstance(expected, str) and sha256 is not None and recorded.get("class") == base_class:
        return sha256 == expected, f"sha256 {sha256[:16]}, recorded {expected[:16]}"
    sketches = read_header(folder).config.get("base_fingerprint") or recorded.get("fingerprint")
    differences = list(sketch_distances(sketches, base))
    if not differences:
        return None, "the adapter records nothing about the weights of the base"
    name, distance, limit = max(differences, key=lambda entry: math.inf if entry[1] is None else entry[1] / entry[2])
    if distance is None:
        return False, f"{name} has another shape"
    figure = (
        f"samples of {counted(len(differences), 'weight')} differ by at most {distance:.2g} of the norm, "
        f"limit {limit:g}"
    )
    return distance <= limit, figure if distance <= limit else f"{figure} ({name})"


def _reload(source: Source, files: AdapterFiles, base: PreTrainedModel, subjects: list[_Subject]) -> tuple[bool, str]:
    alone = fixed_outputs(base)
    with twin_for_loading(base, source.adapter) as twin:
        adapted = fixed_outputs(load_adapter(twin, source.adapter))
    if not bool(torch.isfinite(adapted.values).all()):
        return False, "the outputs hold NaN or infinity"
    subjects.append(_Subject(source, files, base, alone, adapted))
    moved = float((adapted.values - alone.values).abs().max())
    return True, f"outputs finite, the adapter moves them by up to {moved:.3g}"


def _untouched(subject: _Subject) -> tuple[bool | None, str]:
    init = residual_init(subject.source.config)
    if init is not None:
        return None, f"init_lora_weights={init!r} changes the base, which disabling the adapter does not undo"
    with twin_for_loading(subject.base, subject.source.adapter) as twin:
        model = load_adapter(twin, subject.source.adapter)
        with model.disable_adapter():
            off = fixed_outputs(model)
    same = torch.equal(off.values, subject.alone.values)
    trains_biases = (subject.files.config.get("bias") or "none") != "none"
    if trains_biases and not same:
        return None, "the adapter trains biases of the base, which disabling leaves as they are"
    if not same and stored_vocabulary(read_header(subject.source.adapter), subject.base) is not None:
        return None, "the adapter holds the embeddings of a resized vocabulary, which disabling leaves as they are"
    return same, "disabled, its outputs are those of the base" + (" bit for bit" if same else ": they are not")


def _padded_batch(subject: _Subject) -> tuple[bool | None, str]:
    """Compare rows in a batch that the tokenizer pads with the same rows alone."""
    source = subject.source
    saved = saved_tokenizer(source.adapter, source.run)
    place = local_base(source) if saved is None else saved
    tokenizer = load_tokenizer(place, trust_remote_code=source.trust_remote_code)
    if tokenizer is None:
        return None, "neither the adapter nor the base has a tokenizer"
    with twin_for_loading(subject.base, source.adapter) as twin:
        model = load_adapter(twin, source.adapter)
        tokenizer.padding_side = padding_side(subject.base, tokenizer)
        outputs = padded_batch(model, tokenizer)
    return (None, "the model or its tokenizer has no padding token") if outputs is None else _parity(*outputs)


def _same(subject: _Subject, folder: Path) -> tuple[bool, str]:
    with twin_for_loading(subject.base, folder) as twin:
        return _parity(subject.adapted, fixed_outputs(load_adapter(twin, folder)))


def _export(subject: _Subject, to: str) -> tuple[bool | None, str]:
    with tempfile.TemporaryDirectory(prefix="kasatune-") as folder:
        out = Path(folder) / to
        try:
            export_adapter(subject.source.adapter, out, to, base=subject.base)
        except InputError as fault:
            return None, f"cannot hold it: {fault}"
        return True, describe(read_certificate(out))


def _export_gguf(subject: _Subject) -> tuple[bool | None, str]:
    try:
        architecture_of(subject.base.config.to_dict())
        with tempfile.TemporaryDirectory(prefix="kasatune-") as folder:
            needs_base = residual_init(subject.source.config) is not None
            export_gguf(subject.source, Path(folder) / "gguf", subject.base if needs_base else None)
            difference = read_certificate(Path(folder) / "gguf").get("gguf", {})["largest_relative_difference"]
    except InputError as fault:
        return None, f"cannot hold it: {fault}"
    return True, f"updates differ by at most {difference:.2g} of their norm"


def _merge(subject: _Subject) -> tuple[bool | None, str]:
    with tempfile.TemporaryDirectory(prefix="kasatune-") as folder:
        try:
            done = merge(subject.source.given, Path(folder) / "merged", subject.source.base)
        except InputError as fault:
            return None, f"cannot be merged: {fault}"
        merged = model_class(subject.source).from_pretrained(done.out, dtype="auto")
        expected, where = subject.adapted, ""
        if expected.dtype == "quantized":
            # A merge is into the full-precision base, so that the rounding of quantization must not count.
            base = load_base_model(subject.source, quantized=False)
            expected, where = fixed_outputs(load_adapter(base, subject.source.adapter)), " on the full-precision base"
        passed, figure = _parity(expected, fixed_outputs(merged))
        figure = f"{figure}{where}; rounding loses up to {done.rounding:.2g} of an update"
        tokenizer = load_tokenizer(done.out, trust_remote_code=subject.source.trust_remote_code)
        outputs = None if tokenizer is None else padded_batch(merged, tokenizer)
        if passed and outputs is not None and not _parity(*outputs)[0]:
            return False, f"a padded batch gives other outputs than its rows alone: {_parity(*outputs)[1]}"
        return passed, figure


def _parity(before: Outputs, after: Outputs) -> tuple[bool, str]:
    if before.values.shape != after.values.shape:
        raise CheckError(f"outputs of shape {list(after.values.shape)} instead of {list(before.values.shape)}")
    parity = output_parity(before, after)
    figure = f"outputs differ by at most {parity['largest_difference']:.2g}, limit {parity['limit']:.2g}"
    return parity["largest_difference"] <= parity["limit"], figure
