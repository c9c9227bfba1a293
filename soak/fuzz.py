"""Fuzz the loaders of recipes, data files and adapters: every random input loads or gives a KasatuneError.

Run `python -m soak.fuzz --minutes 10`. Hypothesis draws the inputs; one that raises anything but a
KasatuneError is shrunk and printed.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import shutil
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from kasatune.io.library_noise import hush_imports

ROUND = 200  # inputs between two checks of the time

_ODD = [
    "",
    "é",
    "\x00",
    "\x1b[31m",
    "{",
    "[",
    "*a",
    "&a",
    "!!python/name:os",
    "%",
    "~",
    ".nan",
    "1e999",
    "'",
    '"',
    "\t",
]
_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.floats(),
    st.sampled_from(["kasa", "lora", "full", "classification", "regression", "a.csv", "text", "label", "nf4", *_ODD]),
    st.text(max_size=12),
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)


def main(argv: list[str] | None = None) -> int:
    """Fuzz every target, or the chosen ones; return exit status 1 if there was a fault."""
    parser = argparse.ArgumentParser(prog="python -m soak.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="minutes for each target")
    parser.add_argument("--target", choices=TARGETS, action="append", help="a target to fuzz; all by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--quick", action="store_true", help="a few seconds for each target, without writing the record"
    )
    parser.add_argument("--out", type=Path, help="also write the counts to this file, as JSON")
    arguments = parser.parse_args(argv)
    hush_imports()
    minutes = 0.05 if arguments.quick else arguments.minutes
    started = time.perf_counter()
    outcomes = {name: fuzz(name, minutes, arguments.seed) for name in arguments.target or TARGETS}
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(outcomes, indent=2) + "\n", encoding="utf-8")
    if not arguments.quick and not arguments.target:
        record(outcomes, minutes, time.perf_counter() - started)
    return int(any(outcome["faults"] for outcome in outcomes.values()))


def fuzz(name: str, minutes: float, first_seed: int = 0) -> dict[str, Any]:
    """Draw inputs for one target until the time is over; return their counts and the faults."""
    counts: Counter[str] = Counter()
    faults: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="kasatune-fuzz-") as folder:
        strategy, act = TARGETS[name](Path(folder))
        until = time.monotonic() + 60 * minutes
        number = first_seed
        while time.monotonic() < until:
            try:
                _round(number, strategy, act, counts, until)
            except Exception as fault:
                for single in getattr(fault, "exceptions", (fault,)):
                    faults.setdefault(*_described(single))
            number += 1
    result = {"inputs": sum(counts.values()), **counts, "faults": faults, "minutes": minutes}
    print(f"{name}: {result['inputs']:,} inputs, {dict(counts)}, {len(faults)} faults", flush=True)
    for what, text in faults.items():
        print(f"  {what}: {text}", flush=True)
    return result


def _described(fault: BaseException) -> tuple[str, str]:
    """Return a key of a fault, its type and place, and its description."""
    lines = traceback.extract_tb(fault.__traceback__)
    own = [line for line in lines if "/kasatune/" in line.filename] or list(lines)
    place = f"{Path(own[-1].filename).name}:{own[-1].lineno}"
    notes = "\n".join(getattr(fault, "__notes__", ()))
    return f"{type(fault).__name__} in {place}", f"{str(fault)[:500]}\n{notes[:2000]}"


def _round(number: int, strategy: Any, act: Callable[[Any], None], counts: Counter[str], until: float) -> None:
    from kasatune.errors import KasatuneError

    @seed(number)
    @settings(
        max_examples=ROUND,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def check(drawn: Any) -> None:
        if time.monotonic() > until:
            return
        try:
            act(drawn)
        except KasatuneError as refusal:
            message = str(refusal)
            assert message.strip(), "an empty message"
            assert len(message) < 20_000, "a message of more than 20,000 characters"
            assert "\x1b" not in message and "\0" not in message, "a control character in a message"
            counts["refused"] += 1
        else:
            counts["accepted"] += 1

    check()


def _recipes(folder: Path) -> tuple[Any, Callable[[Any], None]]:
    from kasatune.recipes.schema import SECTIONS, load_recipe, to_yaml

    keys = {name: list(model.model_fields) for name, model in SECTIONS.items()}
    section = st.one_of(
        *(st.dictionaries(st.sampled_from(names) | st.text(max_size=8), _VALUES, max_size=5) for names in keys.values())
    )
    good = {
        "model": {"name": "some/model"},
        "task": {"name": "classification", "train": "a.csv", "validation": 0.2, "text": "text", "label": "label"},
    }
    mapping = st.builds(
        lambda odd: {**good, **odd}, st.dictionaries(st.sampled_from([*keys, "output", "x"]), section | _VALUES)
    )
    written = mapping.map(lambda value: yaml.safe_dump(value, sort_keys=False, allow_unicode=True).encode())
    content = st.one_of(
        written, st.tuples(written, _edits()).map(_edited), st.binary(max_size=300), st.text().map(_bytes)
    )
    place = st.sampled_from([f"{name}.{key}" for name, names in keys.items() for key in names])
    override = st.text(max_size=20) | st.builds(lambda key, value: f"{key}={value}", place, st.text(max_size=12))

    def act(drawn: tuple[bytes, list[str], bool]) -> None:
        path = folder / "recipe.yaml"
        path.write_bytes(drawn[0])
        recipe = load_recipe(path, drawn[1], check_inputs=drawn[2])
        path.write_text(to_yaml(recipe), encoding="utf-8")
        assert load_recipe(path) == recipe, "a recipe changed when it was written and read again"

    return st.tuples(content, st.lists(override, max_size=2), st.booleans()), act


def _data(folder: Path) -> tuple[Any, Callable[[Any], None]]:
    import pyarrow
    import pyarrow.parquet

    from kasatune.data.tasks import load_task
    from kasatune.recipes.schema import TaskSection

    cell = st.text(max_size=12) | st.sampled_from(["a", "b", "1", "-1.5", "nan", "1e400", *_ODD])
    texts, labels = st.sampled_from(["good", "bad", "fine, too"]), st.sampled_from(["1", "2"])
    rows = st.lists(st.tuples(texts, labels), min_size=4, max_size=8) | st.lists(st.tuples(cell, cell), max_size=8)

    def delimited(mark: str) -> Any:
        return rows.map(
            lambda pairs: ("\n".join([f"text{mark}label", *(f"{a}{mark}{b}" for a, b in pairs)]) + "\n").encode(
                "utf-8", "surrogatepass"
            )
        )

    objects = st.lists(st.dictionaries(st.sampled_from(["text", "label", "x"]), _VALUES, max_size=3), max_size=8)
    lines = objects.map(lambda rows: "\n".join(json.dumps(row) for row in rows).encode())
    array = objects.map(lambda rows: json.dumps(rows).encode())

    def parquet(pairs: list[tuple[str, str]]) -> bytes:
        sink = pyarrow.BufferOutputStream()
        texts = [pair[0].encode("utf-8", "replace").decode() for pair in pairs]
        pyarrow.parquet.write_table(pyarrow.table({"text": texts, "label": [len(text) for text in texts]}), sink)
        return sink.getvalue().to_pybytes()

    contents = {
        ".csv": delimited(","),
        ".tsv": delimited("\t"),
        ".json": array,
        ".jsonl": lines,
        ".parquet": rows.map(parquet),
    }
    kinds = [
        st.tuples(st.just(ending), content | st.tuples(content, _edits()).map(_edited) | st.binary(max_size=300))
        for ending, content in contents.items()
    ]
    tasks = st.sampled_from(["classification", "regression"])

    def act(drawn: tuple[tuple[str, bytes], str]) -> None:
        (ending, content), task = drawn
        path = folder / f"rows{ending}"
        path.write_bytes(content)
        data = load_task(TaskSection(name=task, train=str(path), validation=0.5, text="text", label="label"))
        for rows in data.splits.values():
            assert all(text.strip() and text.encode("utf-8") and "\0" not in text for text in rows.first), (
                "an empty, undecodable or NUL text"
            )
            assert data.label_names is None or all(0 <= label < len(data.label_names) for label in rows.labels), (
                "a label out of range"
            )

    return st.tuples(st.one_of(kinds), tasks), act


def _adapters(folder: Path) -> tuple[Any, Callable[[Any], None]]:
    import torch
    from peft import get_peft_model
    from transformers import BertConfig, BertForSequenceClassification

    from kasatune import KasaConfig, export_adapter, load_adapter
    from kasatune.errors import KasatuneError
    from kasatune.io.library_noise import quiet

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=11,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=8,
    )
    base = BertForSequenceClassification(config).eval()
    state = {name: value.clone() for name, value in base.state_dict().items()}
    settings_ = KasaConfig(r=2, target_modules=["query", "value"], task_type="SEQ_CLS", modules_to_save=["classifier"])
    model = get_peft_model(BertForSequenceClassification(config).eval(), settings_)
    model.save_pretrained(folder / "kasa")
    for to in ("lora", "peft-kasa", "authors"):
        export_adapter(folder / "kasa", folder / to, to)
    files = {
        (kind, name): (folder / kind / name).read_bytes()
        for kind in ("kasa", "lora", "peft-kasa", "authors")
        for name in ("adapter_config.json", "adapter_model.safetensors")
    }
    known = sorted({key for (_, name), text in files.items() if name.endswith(".json") for key in json.loads(text)})
    change = st.one_of(
        st.tuples(st.just("config"), st.dictionaries(st.sampled_from(known), _VALUES, min_size=1, max_size=3)),
        st.tuples(st.just("bytes"), _edits()),
        st.tuples(
            st.just("header"),
            st.integers(0, 30),
            st.dictionaries(
                st.sampled_from(["dtype", "shape", "data_offsets"]),
                _VALUES | st.just([2**40, 2**41]) | st.just("F16"),
                min_size=1,
            ),
        ),
        st.tuples(st.just("name"), st.integers(0, 30), st.text(max_size=20) | st.sampled_from(["../../x", "a" * 5000])),
    )
    inputs = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        untouched = base(inputs).logits

    def act(drawn: tuple[str, tuple[Any, ...]]) -> None:
        kind, (what, *how) = drawn
        target = folder / "drawn"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        config_bytes, weights = files[kind, "adapter_config.json"], files[kind, "adapter_model.safetensors"]
        if what == "config":
            values = {**json.loads(config_bytes), **how[0]}
            config_bytes = json.dumps(values).encode("utf-8", "surrogatepass")
        elif what == "bytes":
            weights = _edited((weights, how[0]))
        else:
            weights = _new_header(weights, what, how[0], how[1])
        (target / "adapter_config.json").write_bytes(config_bytes)
        (target / "adapter_model.safetensors").write_bytes(weights)
        model = copy.deepcopy(base)
        with quiet(), torch.no_grad():
            try:
                loaded = load_adapter(model, target)
            except KasatuneError:
                after = model.state_dict()
                same = after.keys() == state.keys() and all(torch.equal(after[name], state[name]) for name in state)
                assert same, "a refused adapter changed the base"
                raise
            loaded(inputs)
            with loaded.disable_adapter():
                assert torch.equal(loaded(inputs).logits, untouched), "an adapter changed the base"

    return st.tuples(st.sampled_from(["kasa", "lora", "peft-kasa", "authors"]), change), act


TARGETS: dict[str, Callable[[Path], tuple[Any, Callable[[Any], None]]]] = {
    "recipe parser": _recipes,
    "data readers": _data,
    "adapter loader": _adapters,
}


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _edits() -> Any:
    """Strategy of edits of bytes: (place as a fraction, kind, bytes)."""
    edit = st.tuples(st.floats(0, 1), st.sampled_from(["cut", "insert", "replace", "delete"]), st.binary(max_size=8))
    return st.lists(edit, min_size=1, max_size=4)


def _edited(drawn: tuple[bytes, list[tuple[float, str, bytes]]]) -> bytes:
    content, edits = drawn
    for share, kind, piece in edits:
        at = int(share * len(content))
        if kind == "cut":
            content = content[:at]
        elif kind == "insert":
            content = content[:at] + piece + content[at:]
        elif kind == "replace":
            content = content[:at] + piece + content[at + len(piece) :]
        else:
            content = content[:at] + content[at + len(piece) :]
    return content


def _new_header(weights: bytes, what: str, index: int, change: Any) -> bytes:
    """Return a safetensors file whose header has another name, dtype, shape or offset for one tensor."""
    length = int.from_bytes(weights[:8], "little")
    header = json.loads(weights[8 : 8 + length])
    names = [name for name in header if name != "__metadata__"]
    name = names[index % len(names)]
    if what == "name":
        header[change] = header.pop(name)
    else:
        header[name] = {**header[name], **change}
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + weights[8 + length :]


def record(outcomes: dict[str, dict[str, Any]], minutes: float, seconds: float) -> None:
    """Write the record from which docs/reliability.md is made."""
    from soak.record import write

    write(
        part="fuzz",
        title="Inputs drawn at random",
        order=50,
        command=f"python -m soak.fuzz --minutes {minutes:g}",
        text=(
            "Hypothesis draws recipes, data files and adapters: valid ones with one defect, and random bytes. "
            "Each must load, or be refused by one of kasatune's errors with a short message. A recipe that "
            "loads must be the same after it is written and read again, rows must be text with known labels, "
            "and a base model must be unchanged, bit for bit, after every adapter."
        ),
        columns=["target", "minutes", "inputs", "accepted", "refused", "faults left"],
        rows=[
            [
                name,
                f"{one['minutes']:g}",
                one["inputs"],
                one.get("accepted", 0),
                one.get("refused", 0),
                len(one["faults"]),
            ]
            for name, one in outcomes.items()
        ],
        totals={"inputs tried": sum(one["inputs"] for one in outcomes.values()), "lost": 0},
        findings=FINDINGS,
        seconds=seconds,
    )


FINDINGS = [
    "An unknown task type in the configuration of an adapter of PEFT's KaSA or of the authors' code gave a ValueError"
    " of PEFT; the configuration is checked.",
]


if __name__ == "__main__":
    random.seed(0)
    os.environ.setdefault("KASATUNE_CACHE", "off")
    raise SystemExit(main())
