"""certificate.json: written with a schema version, and read from every earlier version."""

from __future__ import annotations

import json

import pytest

from kasatune.adapters.certificate import CERTIFICATE, SCHEMA_VERSION, describe, read_certificate, write_certificate
from kasatune.errors import AdapterError

OUTPUTS = {
    "dtype": "float32",
    "largest_difference": 1e-6,
    "mean_difference": 1e-7,
    "largest_output": 2.0,
    "limit": 2e-4,
}
UPDATES = {"includes_what_is_dropped": True, "largest_relative_difference": 2e-7, "layer": "q_proj", "limit": 1e-5}
BEFORE_VERSIONS = {
    "from": "kasa",
    "to": "lora",
    "exact": True,
    "updates": UPDATES,
    "outputs": OUTPUTS,
    "base": {"name": "base", "fingerprint": None, "class": "LlamaForCausalLM", "sha256": "0" * 64},
    "files": {"adapter_config.json": "1" * 64},
    "versions": {"kasatune": "0.1.0"},
}


def test_a_certificate_without_a_schema_version_is_read_as_version_1(tmp_path):
    (tmp_path / CERTIFICATE).write_text(json.dumps(BEFORE_VERSIONS))
    certificate = read_certificate(tmp_path)
    assert certificate == {**BEFORE_VERSIONS, "schema_version": 1}
    assert "outputs differ by at most 1e-06" in describe(certificate)


def test_a_certificate_is_written_with_the_current_version_and_unknown_entries_are_kept(tmp_path):
    (tmp_path / CERTIFICATE).write_text(json.dumps({**BEFORE_VERSIONS, "added_later": 1}))
    written = write_certificate(tmp_path, read_certificate(tmp_path))
    assert json.loads((tmp_path / CERTIFICATE).read_text()) == written
    assert written == {**BEFORE_VERSIONS, "added_later": 1, "schema_version": SCHEMA_VERSION}


@pytest.mark.parametrize("damaged", [{"base": 3, "files": []}, {}])
def test_entries_of_a_wrong_type_are_read_as_empty(tmp_path, damaged):
    (tmp_path / CERTIFICATE).write_text(json.dumps(damaged))
    certificate = read_certificate(tmp_path)
    assert certificate["files"] == {}
    assert certificate["base"] == {"name": None, "fingerprint": None}


@pytest.mark.parametrize("content", ["[]", "{", ""])
def test_a_damaged_file_raises_adapter_error(tmp_path, content):
    (tmp_path / CERTIFICATE).write_text(content)
    with pytest.raises(AdapterError, match=CERTIFICATE):
        read_certificate(tmp_path)


def test_a_reduced_rank_is_described_with_its_error():
    certificate = {**BEFORE_VERSIONS, "exact": False, "relative_error": 0.125}
    assert describe(certificate).startswith("relative error 0.125 of the update; ")
