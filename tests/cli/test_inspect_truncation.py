"""`kasatune inspect MODEL --truncation`."""

from __future__ import annotations

import json

import pytest

from tests.text_toys import make_llama


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_llama(tmp_path_factory.mktemp("base"), max_position_embeddings=128)


def test_the_command_prints_the_table_and_json(kasatune, base):
    measured = json.loads(kasatune("inspect", str(base), "--truncation", "--rank", "4", "--json").out)
    done = kasatune("inspect", str(base), "--truncation", "--rank", "4")

    assert done.status == 0
    lines = done.out.splitlines()
    assert lines[0].endswith(f"loss {measured['loss']:.3f} untouched, r = 4")
    total = measured["losses"][-1]
    assert lines[-1].split()[:3] == ["all", "14", f"{total['magnitude']:.3f}"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--truncation", "--base", "other"], "--base was given with --truncation"),
        (["--truncation", "--rank", "32"], "rank 32 must be below min(out, in) = 16"),
    ],
)
def test_unusable_options_are_refused(kasatune, base, arguments, message):
    done = kasatune("inspect", str(base), *arguments)
    assert done.status == 2
    assert message in " ".join(done.err.split())
