"""Tails of a whole checkpoint: right for every layout, streamed, shared, resumed, and taken up by training."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel, BertConfig, BertModel, MixtralConfig, MixtralModel

from kasatune import KasaConfig, tail_svd
from kasatune.adapter_tools import decompose as module
from kasatune.adapter_tools.decompose import Job, Layer, Process, decompose
from kasatune.errors import InputError, ModelError, OutputError, RecipeError
from kasatune.kasa.functional import drop_count
from kasatune.kasa.layer import KasaLayer
from kasatune.kasa.truncation.tail_store import TailDirectory, TailKey
from kasatune.recipes.schema import Recipe
from kasatune.training.train import train
from kasatune.weights.safetensors_reader import StoredTensor
from tests.kasa.models import gpt2, llama
from tests.toys import Recorder, make_recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("llama")
    llama().save_pretrained(place)
    return place


def weights(folder, index):
    model = AutoModel.from_pretrained(folder)
    found = {name: model.get_submodule(name).weight.detach() for name in index["layers"]}
    return {name: W.T if type(model.get_submodule(name)).__name__ == "Conv1D" else W for name, W in found.items()}


def check(out, folder, rank, convention="paper"):
    """Every tail in `out` is that of the layer's weight, as transformers loads it."""
    index, saved = json.loads((out / "index.json").read_text()), TailDirectory(out)
    for name, W in weights(folder, index).items():
        dropped = drop_count(*W.shape, rank, convention)
        assert index["layers"][name]["dropped"] == dropped
        if dropped:
            tail = saved.get(TailKey.of(W, dropped), name)
            assert tail is not None and all(map(torch.equal, tail, tail_svd(W, dropped))), name
    return index


def tails(model):
    return {n: m.tail("default") for n, m in model.named_modules() if isinstance(m, KasaLayer)}


def test_the_default_targets_of_a_llama(folder, tmp_path):
    decompose(Job(str(folder), 3), tmp_path / "t")
    index = check(tmp_path / "t", folder, 3)
    assert sorted(index["layers"]) == sorted(f"layers.{n}.self_attn.{e}_proj" for n in range(2) for e in "qv")


@pytest.mark.parametrize("targets", [("all-linear",), ("down_proj", "layers.1.self_attn.o_proj")])
def test_named_targets_of_a_llama(folder, tmp_path, targets):
    decompose(Job(str(folder), 3, targets), tmp_path / "t")
    index = check(tmp_path / "t", folder, 3)
    assert len(index["layers"]) == (14 if targets == ("all-linear",) else 3)


def test_conv1d_is_turned_around(tmp_path):
    gpt2().save_pretrained(tmp_path / "gpt2")
    decompose(Job(str(tmp_path / "gpt2"), 3, ("all-linear",)), tmp_path / "t")
    index = check(tmp_path / "t", tmp_path / "gpt2", 3)
    assert index["layers"]["h.0.attn.c_attn"]["shape"] == [96, 32]


def test_the_authors_convention_drops_what_it_drops(tmp_path):
    gpt2().save_pretrained(tmp_path / "gpt2")
    decompose(Job(str(tmp_path / "gpt2"), 3, ("all-linear",), convention="authors"), tmp_path / "t")
    index = check(tmp_path / "t", tmp_path / "gpt2", 3, "authors")
    assert {layer["dropped"] for layer in index["layers"].values()} == {0, 3}
    assert "file" not in index["layers"]["h.0.mlp.c_proj"]


def test_shards_give_what_one_file_gives(folder, tmp_path):
    llama().save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 3
    one = decompose(Job(str(folder), 3, ("all-linear",)), tmp_path / "one")
    many = decompose(Job(str(tmp_path / "shards"), 3, ("all-linear",)), tmp_path / "many")
    assert one["layers"] == many["layers"]
    check(tmp_path / "many", tmp_path / "shards", 3)


def test_a_narrower_dtype_is_that_of_the_loaded_model(folder, tmp_path, decompositions):
    decompose(Job(str(folder), 3, dtype="bfloat16"), tmp_path / "t")
    base = AutoModel.from_pretrained(folder, dtype=torch.bfloat16)
    get_peft_model(base, KasaConfig(r=3, tails=str(tmp_path / "t")))
    assert decompositions == []
    with pytest.raises(ModelError, match=r"holds no tail of layers.0.self_attn.q_proj"):
        get_peft_model(AutoModel.from_pretrained(folder), KasaConfig(r=3, tails=str(tmp_path / "t")))


def test_a_higher_rank_serves_a_lower_one(folder, tmp_path, decompositions):
    decompose(Job(str(folder), 5), tmp_path / "t")
    found = tails(get_peft_model(AutoModel.from_pretrained(folder), KasaConfig(r=3, tails=str(tmp_path / "t"))))
    assert decompositions == []
    plain = tails(get_peft_model(AutoModel.from_pretrained(folder), KasaConfig(r=3)))
    assert len(found) == 4
    for name in plain:
        torch.testing.assert_close(found[name], plain[name], atol=1e-6, rtol=0)
    with pytest.raises(ModelError, match=r"holds 5 singular triplets of .*--rank 6"):
        get_peft_model(AutoModel.from_pretrained(folder), KasaConfig(r=6, tails=str(tmp_path / "t")))


def test_the_path_of_the_tails_is_not_saved(folder, tmp_path):
    decompose(Job(str(folder), 3), tmp_path / "t")
    model = get_peft_model(AutoModel.from_pretrained(folder), KasaConfig(r=3, tails=str(tmp_path / "t")))
    model.save_pretrained(str(tmp_path / "saved"))
    assert "tails" not in json.loads((tmp_path / "saved" / "adapter_config.json").read_text())


def test_a_damaged_tail_is_computed_again_and_said_so(folder, tmp_path, decompositions):
    index = decompose(Job(str(folder), 3), tmp_path / "t")
    layer = index["layers"]["layers.0.self_attn.q_proj"]
    path = tmp_path / "t" / layer["file"]
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.warns(UserWarning, match=r"the tail of layers.0.self_attn.q_proj is computed again"):
        get_peft_model(AutoModel.from_pretrained(folder), KasaConfig(r=3, tails=str(tmp_path / "t")))
    assert decompositions == ["layers.0.self_attn.q_proj"]


def test_training_takes_its_tails_from_the_directory(bert, tmp_path, decompositions):
    decompose(Job(str(bert), 2), tmp_path / "t")
    recorder = Recorder()
    recipe = make_recipe(bert, tmp_path / "data", max_steps=1, method={"tails": str(tmp_path / "t")})
    train(recipe, tmp_path / "with", display=recorder)
    assert decompositions == []
    assert recorder.progressed[-1] == ("decomposing", 4, 4)
    plain = make_recipe(bert, tmp_path / "data", max_steps=1)
    train(plain, tmp_path / "without")
    assert len(decompositions) == 4
    one, other = (load_file(tmp_path / run / "kasa" / "adapter_model.safetensors") for run in ("with", "without"))
    assert all(torch.equal(one[key], other[key]) for key in other)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"r": 5}, "method.r: 5 received; .* holds rank 2"),
        ({"convention": "authors"}, "follows the convention 'paper'|follows the convention \"paper\""),
        ({"tails": "nowhere"}, "method.tails: .*nowhere.* not a directory that `kasatune decompose` finished"),
    ],
)
def test_a_recipe_that_the_tails_do_not_fit_is_refused_at_once(bert, tmp_path, change, fault):
    if not (tmp_path / "t").exists():
        decompose(Job(str(bert), 2), tmp_path / "t")
    recipe = make_recipe(bert, tmp_path / "data", method={"tails": str(tmp_path / "t"), **change})
    with pytest.raises(RecipeError, match=fault):
        Recipe.model_validate(recipe.model_dump(), check_inputs=True)


@pytest.mark.parametrize(
    ("job", "fault"),
    [
        ({"rank": 16}, "rank 16 must be below min"),
        ({"rank": 0}, "r must be a whole number of at least 1"),
        ({"targets": ("embed_tokens",)}, "embed_tokens is an Embedding"),
        ({"targets": ("q_proj", "nothing")}, "nothing matches no layer; the layers that can be adapted end in: down"),
        ({"targets": ("q_proj", "all-linear")}, "--target all-linear cannot be combined"),
    ],
)
def test_what_cannot_be_decomposed_is_refused_with_nothing_written(folder, tmp_path, job, fault):
    with pytest.raises(InputError, match=fault):
        decompose(Job(**{"model": str(folder), "rank": 3, **job}), tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_stacked_experts_are_refused(tmp_path):
    small = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    config = MixtralConfig(**small, num_attention_heads=2, num_key_value_heads=2, num_local_experts=2)
    MixtralModel(config).save_pretrained(tmp_path / "moe")
    with pytest.raises(ModelError, match="stacks its experts"):
        decompose(Job(str(tmp_path / "moe"), 3, ("q_proj", "w1")), tmp_path / "t")
    with pytest.warns(UserWarning, match="expert weights of this model are not adapted"):
        index = decompose(Job(str(tmp_path / "moe"), 1, ("q_proj", "k_proj")), tmp_path / "t") and decompose(
            Job(str(tmp_path / "moe"), 1, ("all-linear",)), tmp_path / "all"
        )
    assert all("experts" not in name for name in index["layers"])


def test_a_quantized_checkpoint_is_refused(folder, tmp_path):
    copy = tmp_path / "copy"
    llama().save_pretrained(copy)
    tensors = load_file(copy / "model.safetensors")
    tensors["model.layers.0.self_attn.q_proj.weight"] = torch.zeros(32, 32, dtype=torch.uint8)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"q_proj.weight is stored as U8; .* the checkpoint that was quantized"):
        decompose(Job(str(copy), 3), tmp_path / "t")


def test_a_layer_without_a_weight_is_left_out_and_named(folder, tmp_path):
    copy = tmp_path / "copy"
    llama().save_pretrained(copy)
    tensors = load_file(copy / "model.safetensors")
    del tensors["model.layers.1.self_attn.v_proj.weight"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    recorder = Recorder()
    index = decompose(Job(str(copy), 3), tmp_path / "t", display=recorder)
    assert len(index["layers"]) == 3
    assert recorder.messages == [
        "skipped, because the files contain no weight for them: layers.1.self_attn.v_proj",
    ]


def killed_after(monkeypatch, times):
    """The command is killed when it writes another tail; the tails that were written, by file name."""
    written = []
    original = module.write_tail

    def write(folder, key, tail):
        if len(written) == times:
            raise KeyboardInterrupt
        written.append(key.filename)
        return original(folder, key, tail)

    monkeypatch.setattr(module, "write_tail", write)
    return written


def test_a_killed_command_goes_on_where_it_was(folder, tmp_path, monkeypatch):
    job, out = Job(str(folder), 3, ("all-linear",)), tmp_path / "t"
    whole = decompose(job, tmp_path / "whole")
    with monkeypatch.context() as patched:
        first = killed_after(patched, 5)
        with pytest.raises(KeyboardInterrupt):
            decompose(job, out)
    assert not (out / "index.json").exists()
    with pytest.raises(InputError, match="holds no finished decomposition"):
        TailDirectory(out)
    with pytest.raises(OutputError, match=r"holds an unfinished decomposition; .*--resume"):
        decompose(job, out)
    damaged = out / "tails" / first[2]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    second = killed_after(monkeypatch, 100)
    recorder = Recorder()
    index = decompose(job, out, resume=True, display=recorder)
    assert sorted(second) == sorted({layer["file"][6:] for layer in whole["layers"].values()} - {*first} | {first[2]})
    assert "is computed again" in recorder.messages[0]
    assert index["layers"] == whole["layers"]
    assert sorted(p.name for p in out.iterdir()) == ["index.json", "tails"]
    check(out, folder, 3)


def test_a_command_killed_while_writing_its_first_file_is_resumed(folder, tmp_path):
    job, out = Job(str(folder), 3), tmp_path / "t"
    out.mkdir()
    (out / ".unfinished.json.unfinished").write_text('{"mod')
    assert decompose(job, out, resume=True)["layers"]
    assert sorted(path.name for path in out.iterdir()) == ["index.json", "tails"]


def test_an_occupied_directory_is_left_alone(folder, tmp_path):
    out = tmp_path / "t"
    decompose(Job(str(folder), 3), out)
    with pytest.raises(OutputError, match="is not empty"):
        decompose(Job(str(folder), 4), out)
    with pytest.raises(OutputError, match=r"started with other options .rank: 3 then, 4 now"):
        decompose(Job(str(folder), 4), out, resume=True)
    (out / "mine.txt").write_text("kept")
    decompose(Job(str(folder), 4), out, overwrite=True)
    assert check(out, folder, 4)["rank"] == 4
    assert len(list((out / "tails").iterdir())) == 4
    assert (out / "mine.txt").read_text() == "kept"
    with pytest.raises(OutputError, match="holds no decomposition to resume"):
        decompose(Job(str(folder), 4), tmp_path, resume=True)


def test_processes_share_the_layers_by_cost():
    entry = StoredTensor(Path("x"), "x", "F32", (1, 1))
    layers = [Layer(f"l{n}", entry, False, (size, size), 1) for n, size in enumerate((10, 40, 10, 39, 20, 30, 10, 5))]
    shares = [module._share(layers, Process(rank, 3)) for rank in range(3)]
    assert sorted(layer.name for share in shares for layer in share) == sorted(layer.name for layer in layers)
    loads = [sum(layer.cost for layer in share) for share in shares]
    assert max(loads) == 40**3  # the costliest layer alone is the bound


def test_two_processes_of_torchrun_share_the_work(folder, tmp_path):
    alone = decompose(Job(str(folder), 3, ("all-linear",)), tmp_path / "alone")
    out = tmp_path / "shared"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = ["decompose", str(folder), "--rank", "3", "--target", "all-linear", "--out", str(out)]
    done = subprocess.run([*command, "-m", "kasatune", *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("tails of 14 layers") == 1
    assert json.loads((out / "index.json").read_text())["layers"] == alone["layers"]
    check(out, folder, 3)


PEAK = """
import resource, sys
from pathlib import Path
from kasatune.adapter_tools.decompose import Job, decompose
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
for name in sys.argv[1:]:
    decompose(Job(name, 2, ("all-linear",)), Path(name + "-tails"))
    print(peak())
"""


def test_memory_holds_one_weight_however_many_shards_there_are(tmp_path):
    shape = {"hidden_size": 32, "intermediate_size": 32768, "vocab_size": 8, "max_position_embeddings": 8}
    sizes = []
    for shards in (2, 10):
        model = BertModel(BertConfig(num_hidden_layers=shards, num_attention_heads=1, **shape))
        model.save_pretrained(tmp_path / str(shards), max_shard_size="9MB")
        files = list((tmp_path / str(shards)).glob("*.safetensors"))
        assert len(files) >= shards
        sizes.append(sum(path.stat().st_size for path in files))
    command = [sys.executable, "-c", PEAK, str(tmp_path / "2"), str(tmp_path / "10")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    small, large = map(int, done.stdout.split())
    assert sizes[1] - sizes[0] > 60e6
    assert large - small < 15e6
