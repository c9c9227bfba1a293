"""certificate.json, what is measured of a written adapter or merged checkpoint: its type, reader and writer.

Entries are added, never renamed or removed. Certificates have no dates: equal conversions have equal certificates.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

from kasatune.adapters.adapter_files import read_json, write_json
from kasatune.io.environment import versions as installed_versions

CERTIFICATE = "certificate.json"
SCHEMA_VERSION = 2  # 1: files without the entry

_LIBRARIES = ("kasatune", "peft", "python", "torch", "transformers")


class OutputParity(TypedDict):
    """How far two models' outputs for fixed inputs differ.

    Attributes:
        inputs: {"seed", "shape": [rows, tokens]} of the random token ids.
        dtype: the narrowest dtype that either model computes in, "tf32" or "quantized".
        largest_difference: max |y_1 - y_2|.
        mean_difference: mean |y_1 - y_2|.
        largest_output: max |y_1|.
        limit: the largest difference that the dtype explains.
    """

    inputs: dict[str, Any]
    dtype: str
    largest_difference: float
    mean_difference: float
    largest_output: float
    limit: float


class NotMeasured(TypedDict):
    """Why the outputs were not compared; `measured` is False."""

    measured: bool
    reason: str | None


class UpdateParity(TypedDict):
    """How far the updates of two adapters differ.

    Attributes:
        includes_what_is_dropped: whether the truncated tail counts as part of the update.
        largest_relative_difference: max over the layers of ||dW_1 - dW_2||_F / ||dW_1||_F.
        layer: where it is.
        limit: the largest difference that rounding explains.
    """

    includes_what_is_dropped: bool
    largest_relative_difference: float
    layer: str
    limit: float


# `name` is the base's name or folder, `fingerprint` has a sketch for each layer, `class` is the model's, and `sha256`
# is of all its parameters; the last two are None where they could not be determined.
BaseRecord = TypedDict(
    "BaseRecord",
    {"name": str | None, "fingerprint": Any, "class": NotRequired[str | None], "sha256": NotRequired[str | None]},
)

# `from` and `to` are formats; `from` may be "training", `to` "gguf" or "checkpoint". `files` has the SHA-256 of each
# file. `exact` is False after a reduction of the rank, whose errors are in `relative_error` and `layers`. `gguf` and
# `rounding` have the error of a GGUF export and of a merge, `scores` those of a run before and after `shrink`.
Certificate = TypedDict(
    "Certificate",
    {
        "schema_version": NotRequired[int],
        "from": str,
        "to": str,
        "base": BaseRecord,
        "files": dict[str, str],
        "versions": dict[str, str],
        "exact": NotRequired[bool],
        "updates": NotRequired[UpdateParity],
        "outputs": NotRequired[OutputParity | NotMeasured],
        "relative_error": NotRequired[float],
        "layers": NotRequired[dict[str, dict[str, float]]],
        "gguf": NotRequired[dict[str, float]],
        "rounding": NotRequired[dict[str, Any]],
        "scores": NotRequired[dict[str, Any]],
    },
)


def write_certificate(directory: Path, certificate: Certificate) -> Certificate:
    """Write certificate.json into an existing directory; returns it as written, with its schema version."""
    written: Certificate = {**certificate, "schema_version": SCHEMA_VERSION}
    write_json(directory / CERTIFICATE, cast(dict[str, Any], written))
    return written


def read_certificate(directory: Path) -> Certificate:
    """The certificate in a directory; entries of newer versions are kept, and `schema_version` is always present.

    Only `base` and `files` are checked, since they are all that decides anything: a wrong type is replaced by an empty
    record.

    Raises:
        AdapterError: there is none, or it is not a JSON object.
    """
    content = {"schema_version": 1, **read_json(directory, CERTIFICATE)}
    if not isinstance(content.get("base"), dict):
        content["base"] = {"name": None, "fingerprint": None}
    if not isinstance(content.get("files"), dict):
        content["files"] = {}
    return cast(Certificate, content)


def library_versions() -> dict[str, str]:
    """Versions of kasatune and of the libraries that compute."""
    return {name: version for name, version in sorted(installed_versions().items()) if name in _LIBRARIES}


def describe(certificate: Certificate) -> str:
    """The certificate of a conversion in one sentence."""
    outputs, updates = certificate.get("outputs"), certificate.get("updates")
    if outputs is not None and "largest_difference" in outputs:
        parity = f"outputs equal bit for bit ({outputs['dtype']})"
        if outputs["largest_difference"]:
            parity = (
                f"outputs differ by at most {outputs['largest_difference']:.2g} "
                f"(mean {outputs['mean_difference']:.2g}, {outputs['dtype']})"
            )
    else:
        largest = updates["largest_relative_difference"] if updates is not None else float("nan")
        parity = f"updates differ by at most {largest:.2g} of their norm"
    if "relative_error" not in certificate:
        return parity
    return f"relative error {certificate['relative_error']:.3g} of the update; {parity}"
