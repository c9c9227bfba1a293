from __future__ import annotations

import time

import pytest
import yaml

from kasatune.errors import RecipeError
from kasatune.recipes.schema import Recipe, load_recipe, to_yaml

LEAST = "model: {name: some/model}\ntask: {name: glue/rte}\n"


@pytest.fixture
def write(tmp_path):
    def write(text: str | bytes):
        path = tmp_path / "recipe.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def faults(path, overrides=(), **options) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides, **options)
    assert str(path) in str(caught.value)
    return caught.value.faults


def test_a_minimal_recipe_has_all_published_defaults(write):
    assert load_recipe(write(LEAST)).model_dump() == {
        "model": {
            "name": "some/model",
            "revision": None,
            "dtype": "float32",
            "quantization": "none",
            "dropout": None,
            "trust_remote_code": False,
        },
        "task": {
            "name": "glue/rte",
            "data": None,
            "revision": None,
            "train": None,
            "validation": None,
            "text": None,
            "label": None,
            "prompt": None,
            "completion": None,
            "loss_on": None,
            "max_length": 128,
            "max_train": None,
            "max_eval": None,
        },
        "method": {
            "name": "kasa",
            "r": 8,
            "alpha": 16,
            "dropout": 0.0,
            "use_rslora": False,
            "target_modules": "default",
            "convention": "paper",
            "core": "diagonal",
            "truncation": "attach",
            "beta": 1e-4,
            "gamma": 1e-3,
            "tails": None,
            "options": {"truncate": True, "sigma": "trained"},
        },
        "training": {
            "epochs": 3,
            "max_steps": None,
            "batch_size": 32,
            "gradient_accumulation": 1,
            "eval_batch_size": 64,
            "learning_rate": 5e-4,
            "head_learning_rate": None,
            "weight_decay": 0.0,
            "warmup_ratio": 0.06,
            "schedule": "linear",
            "max_grad_norm": None,
            "precision": "float32",
            "gradient_checkpointing": False,
            "seed": 0,
            "select": "best",
            "device": "auto",
            "report_to": [],
            "packing": False,
        },
        "output": "runs/rte-kasa",
    }


@pytest.mark.parametrize("value", ["1e-4", "1E-4", "1.0e-4", "0.0001", ".1e-3", "+1e-4"])
def test_all_spellings_of_a_number_are_numbers(write, value):
    recipe = load_recipe(write(LEAST + f"training: {{learning_rate: {value}}}"), [f"training.weight_decay={value}"])
    assert recipe.training.learning_rate == recipe.training.weight_decay == pytest.approx(1e-4)


def test_whole_numbers_may_be_written_like_floats(write):
    recipe = load_recipe(write(LEAST + "training: {max_steps: 1e3, seed: 007}"))
    assert (recipe.training.max_steps, recipe.training.seed) == (1000, 7)
    assert isinstance(recipe.training.max_steps, int)


def test_words_of_yaml_1_1_stay_text(write):
    text = (
        "model: {name: m}\ntask: {name: classification, train: a.csv, validation: b.csv, text: no, label: 2024-01-01}"
    )
    recipe = load_recipe(write(text))
    assert (recipe.task.text, recipe.task.label) == ("no", "2024-01-01")
    again = load_recipe(write(to_yaml(recipe)))
    assert again == recipe
    assert yaml.safe_load(to_yaml(recipe))["task"]["label"] == "2024-01-01"


def test_to_yaml_round_trips_through_this_reader_and_pyyaml(write):
    recipe = load_recipe(
        write(LEAST),
        [
            "training.learning_rate=3e-7",
            "model.name='1e-4'",
            "method.target_modules=[query, value]",
            "training.epochs=0.5",
            "output=runs/é 1",
        ],
    )
    text = to_yaml(recipe)
    assert load_recipe(write(text)) == recipe
    assert yaml.safe_load(text) == recipe.model_dump()
    assert list(yaml.safe_load(text)) == ["model", "task", "method", "training", "output"]
    assert to_yaml(load_recipe(write(text))) == text


def test_a_recipe_is_frozen(write):
    recipe = load_recipe(write(LEAST))
    with pytest.raises(ValueError, match="frozen"):
        recipe.training.seed = 1  # type: ignore[misc]


def test_every_fault_is_reported_at_once(write):
    text = """
model: {nam: x}
task: {name: glue/rt, max_length: 0}
method: {r: 0, alpha: .inf, dropout: 1.0, core: diagnal, target_modules: []}
training: {learning_rate: -1, batch_size: 30, gradient_accumulation: 4, schedule: liner, warmup_ratio: 2, beta: 3}
lerning: {}
seed: 3
"""
    found = faults(write(text), ["foo", "training.sed=1", "method.gamma=abc"])
    expected = {
        "override": "section.key=value",
        "model.nam": "did you mean name?",
        "model.name": "missing",
        "task.name": "did you mean glue/rte?",
        "task.max_length": "at least 1",
        "method.r": "at least 1",
        "method.alpha": "finite",
        "method.dropout": "below 1",
        "method.core": "did you mean diagonal?",
        "method.target_modules": "at least 1",
        "method.gamma": "a number",
        "training.learning_rate": "at least 0",
        "training.gradient_accumulation": "must divide training.batch_size (30)",
        "training.schedule": "did you mean linear?",
        "training.warmup_ratio": "at most 1",
        "training.beta": "method.beta",
        "training.sed": "did you mean seed?",
        "lerning": "did you mean training?",
        "seed": "training.seed",
    }
    by_place = {fault.split(":")[0].split(" ")[0]: fault for fault in found}
    assert by_place.keys() == expected.keys()
    for place, words in expected.items():
        assert words in by_place[place]


def test_a_fault_names_the_value_the_limit_and_the_remedy(write):
    assert faults(write(LEAST + "method: {r: -3}")) == ("method.r: -3 received; must be at least 1; the default is 8",)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("training: {seed: true}", "whole number"),
        ("training: {seed: 4294967296}", "at most"),
        ("training: {learning_rate: .nan}", "finite"),
        ("training: {learning_rate: '1e-4'}", "a number"),
        ("training: {epochs: 0}", "above 0"),
        ("training: {max_steps: 2.5}", "whole number"),
        ("training: {max_grad_norm: 0}", "above 0"),
        ("training: {schedule: constant, warmup_ratio: 0.1}", "constant_with_warmup"),
        ("training: {device: gpu}", "cuda"),
        ("training: {device: cpu, precision: float16}", "bfloat16"),
        ("training: {report_to: [wandbb]}", "did you mean wandb?"),
        ("training: {gradient_checkpointing: 1}", "true or false"),
        ("model: {name: x, dropout: 0.1}", "null (the model's own) or 0"),
        ("model: {name: ''}", "not empty"),
        ("model: {name: x, trust_remote_code: yes}", "true or false"),
        ("method: {name: lor}", "did you mean lora?"),
        ("method: {target_modules: '('}", "regular expression"),
        ("method: {target_modules: [query, 3]}", "list of text"),
        ("method: 3", "section"),
        ("method: {beta: -1}", "at least 0"),
        ("output: ''", "not empty"),
        ("output: 2024", "text"),
        ('output: "a\\0b"', "NUL"),
    ],
)
def test_one_fault_gives_one_sentence(write, line, words):
    text = LEAST if not line.startswith("model") else "task: {name: glue/rte}\n"
    (fault,) = faults(write(text + line))
    assert words in fault
    assert fault.startswith(line.split(":")[0])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "empty"),
        (b"# only a comment\n", "empty"),
        (b"[1, 2]", "not a recipe"),
        (b"just words", "not a recipe"),
        (b"\xff\xfe\x00", "UTF-8"),
        (b"a: [1", "line 1"),
        (b"a:\n\t- b", "indent with spaces"),
        (b"a: 1\na: 2", "given twice"),
        (b"task: {name: a, name: b}", "given twice"),
        (b"a: &x [1]\nb: *x", "alias"),
        (b"a: !!python/object/apply:os.system [ls]", "tags are not allowed"),
        (b"? [a]\n: 1", "single word"),
        (b"a: 1\n---\nb: 2", "single document"),
        (b"a: " + b"9" * 5000, "5000 digits"),
        (b"\x00", "not text"),
    ],
)
def test_a_file_that_is_not_a_recipe_is_refused_in_one_sentence(write, text, words):
    (fault,) = faults(write(text))
    assert words in fault


def test_aliases_depth_and_size_are_refused_in_bounded_time(write):
    laughs = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    deep = "[" * 60_000
    nested = "".join(f"{' ' * depth}k:\n" for depth in range(300))
    huge = "a: " + "x" * 10_000_000
    start = time.monotonic()
    assert "alias" in faults(write(laughs))[0]
    assert "deep" in faults(write(deep))[0]
    assert "deep" in faults(write(nested))[0]
    assert "larger than" in faults(write(huge))[0]
    assert time.monotonic() - start < 5


def test_files_that_cannot_be_read_are_named(tmp_path):
    assert "no such file" in faults(tmp_path / "missing.yaml")[0]
    assert "folder" in faults(tmp_path)[0]
    assert "not a regular file" in faults("/dev/zero")[0]
    assert "File name too long" in faults(tmp_path / ("x" * 300))[0]


def test_overrides_change_the_recipe(write):
    recipe = load_recipe(
        write(LEAST), ["training.seed=5", "method.target_modules=[query]", "output=o", "task.data=", "model.name=a=b"]
    )
    assert (recipe.training.seed, recipe.method.target_modules, recipe.output) == (5, ["query"], "o")
    assert (recipe.task.data, recipe.model.name) == (None, "a=b")


@pytest.mark.parametrize(
    "override", ["foo", "=3", "training=3", "training.=3", ".seed=3", "a.b.c=1", "training.seed=[1", "training.seed=*x"]
)
def test_malformed_overrides_are_named(write, override):
    (fault,) = faults(write(LEAST), [override])
    assert override in fault


def test_an_override_given_twice_is_refused(write):
    (fault,) = faults(write(LEAST), ["training.seed=1", "training.seed=2"])
    assert "keep one" in fault


def test_own_data_needs_its_keys(write):
    found = faults(write("model: {name: m}\ntask: {name: regression, train: a.csv, data: folder}"))
    assert [fault.split(":")[0] for fault in found] == ["task.data", "task.validation", "task.text", "task.label"]


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("name: glue/rte, data: folder", "read from this machine"),
        ("name: demo", "read from this machine"),
        ("name: instruction, train: 'hub:a/b:train', validation: 0.1", "hub:NAME@REVISION:SPLIT"),
    ],
)
def test_a_revision_is_only_for_benchmarks_on_the_hub(write, task, words):
    (fault,) = faults(write(f"model: {{name: m}}\ntask: {{{task}, revision: v1}}"))
    assert fault.startswith("task.revision: ") and words in fault
    assert load_recipe(write("model: {name: m}\ntask: {name: glue/rte, revision: v1}")).task.revision == "v1"


def test_benchmark_tasks_do_not_take_keys_of_own_data(write):
    found = faults(write("model: {name: m}\ntask: {name: glue/rte, train: a.csv, text: [a, b], label: c}"))
    assert [fault.split(":")[0] for fault in found] == ["task.train", "task.text", "task.label"]
    assert all("glue/rte does not read it" in fault for fault in found)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ("task.text=[a, a]", "task.text"),
        ("task.text=[a, b, c]", "task.text"),
        ("task.label=sentence", "task.label"),
        ("task.train=a.xlsx", "task.train"),
        ("task.train=b.csv", "task.validation"),
        ("task.prompt=x", "task.prompt"),
    ],
)
def test_own_data_that_contradicts_itself_is_refused(write, change, place):
    text = "model: {name: m}\ntask: {name: classification, train: a.csv, validation: b.csv, text: sentence, label: l}"
    (fault,) = faults(write(text), [change])
    assert fault.startswith(f"{place}:")


def test_validation_may_be_a_share_of_the_training_rows(write):
    text = "model: {name: m}\ntask: {name: classification, train: a.csv, validation: 0.1, text: sentence, label: l}"
    assert load_recipe(write(text)).task.validation == 0.1
    for share in ("0", "1.5"):
        (fault,) = faults(write(text), [f"task.validation={share}"])
        assert fault.startswith(f"task.validation: {share} received")


def test_methods_that_need_a_float_base_refuse_a_quantized_one(write):
    assert "attach" in faults(write(LEAST), ["model.quantization=nf4", "method.truncation=fold"])[0]
    for method in ("full", "peft-kasa"):
        (fault,) = faults(write(LEAST), ["model.quantization=nf4", f"method.name={method}"])
        assert method in fault
    load_recipe(write(LEAST), ["model.quantization=nf4"])


def test_inputs_are_checked_only_on_request(write, tmp_path):
    text = """
model: {name: ./no/such/model, quantization: nf4}
task: {name: classification, train: no.csv, validation: none.csv, text: a, label: b}
"""
    load_recipe(write(text))
    found = faults(write(text), check_inputs=True)
    assert {fault.split(":")[0] for fault in found} >= {"model.name", "task.train", "task.validation"}
    assert all("check the path" in fault for fault in found if "no such" in fault)


def test_missing_packages_folders_and_files_have_different_messages(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()

    def fault(*overrides):
        return " ".join(faults(write(LEAST), overrides, check_inputs=True))

    assert "pip install 'no-such-model'" in fault("model.name=package:no_such_model")
    assert "no config.json" in fault("model.name=empty")
    assert "is a file" in fault("task.data=file")
    assert "no such folder" in fault("task.data=nowhere")
    assert "no such folder" in fault("task.data=" + "x" * 300)


def test_a_mapping_is_checked_like_a_file():
    recipe = Recipe.model_validate({"model": {"name": "m"}, "task": {"name": "glue/sst2"}, "method": {"name": "lora"}})
    assert recipe.output == "runs/sst2-lora"
    with pytest.raises(RecipeError, match=r"task\.name"):
        Recipe.model_validate({"model": {"name": "m"}})
    with pytest.raises(RecipeError, match="not a recipe"):
        Recipe.model_validate([1])


def test_validation_does_not_change_its_argument():
    given = {"model": {"name": "m"}, "task": {"name": "glue/sst2"}, "training": {"schedule": "constant"}}
    recipe = Recipe.model_validate(given)
    assert recipe.training.warmup_ratio == 0.0
    assert given == {"model": {"name": "m"}, "task": {"name": "glue/sst2"}, "training": {"schedule": "constant"}}


def test_overriding_the_method_drops_its_options(write):
    path = write("model: {name: some/model}\ntask: {name: glue/rte}\nmethod: {name: kasa, options: {sigma: one}}\n")
    assert load_recipe(path, ["method.name=lora"]).method.options == {}
    assert load_recipe(path, ["method.name=kasa"]).method.options["sigma"] == "one"
    learning = load_recipe(path, ["method.options.ratio=8", "method.name=lora-plus"]).method.options
    assert learning["ratio"] == 8 and "sigma" not in learning
