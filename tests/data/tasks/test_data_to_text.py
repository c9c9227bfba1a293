"""E2E, WebNLG and DART in the forms of their files, and the user's own prompts."""

import json

import pytest

from kasatune.data.tasks import load_evaluation, load_task
from kasatune.data.tasks.data_to_text import e2e_facts, read_pairs
from kasatune.data.tasks.table import TASKS
from kasatune.errors import DataError, WorkError
from tests.data.tasks.settings import Settings
from tests.shared_data import shared

PROMPT = "### Context : {}\n### Completion : "


def e2e_folder(path, lines=("name : A | Type : pub||A is a pub . ", "name : B||B it is .")):
    for name in ("train", "valid", "test"):
        (path / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_prompt_equals_the_authors_to_the_letter():
    assert TASKS["e2e"].render("name : A") == "### Context : name : A\n### Completion : "
    assert TASKS["text-generation"].render("name : A") == "name : A"


def test_lora_form(tmp_path):
    data = load_task(Settings("e2e", data=str(e2e_folder(tmp_path))))
    rows = data.splits["train"]
    assert rows.first == [PROMPT.format("name : A | Type : pub"), PROMPT.format("name : B")]
    assert rows.labels == ["A is a pub .", "B it is ."]
    assert (data.kind, data.label_names, data.primary, set(data.splits)) == (
        "generation",
        None,
        "loss",
        {"train", "validation", "test"},
    )


@pytest.mark.parametrize(
    ("meaning", "facts"),
    [
        (
            "name[Alimentum], area[city centre], familyFriendly[no]",
            "name : Alimentum | area : city centre | family friendly : no",
        ),
        ("name[The Eagle], eatType[pub], priceRange[£20-25]", "name : The Eagle | Type : pub | price : £ 20 - 25"),
        (
            "priceRange[more than £30], customer rating[5 out of 5]",
            "price : more than £ 30 | customer rating : 5 out of 5",
        ),
    ],
)
def test_the_challenges_facts_in_loras_form(meaning, facts):
    assert e2e_facts(meaning) == facts


def test_both_forms_of_the_real_data_give_the_same_prompts():
    for ours, theirs, groups in (("valid.txt", "devset.csv", 547), ("test.txt", "testset_w_refs.csv", 630)):
        lora, challenge = (read_pairs(TASKS["e2e"], shared(f"e2e/{name}")) for name in (ours, theirs))
        assert lora.first == challenge.first
        assert len(set(lora.first)) == groups


def test_the_challenges_csv_without_a_test_set(tmp_path):
    for name in ("trainset.csv", "devset.csv"):
        (tmp_path / name).write_text('mr,ref\n"name[A], eatType[pub]","A, a pub."\n', encoding="utf-8")
    data = load_task(Settings("e2e", data=str(tmp_path)))
    assert data.splits["validation"].first == [PROMPT.format("name : A | Type : pub")]
    assert data.splits["validation"].labels == ["A, a pub."]
    assert "test" not in data.splits and any("no split test" in note for note in data.notes)


def test_webnlg_reads_only_sentences_marked_good(tmp_path):
    triples = [
        {"subject": "Aarhus", "property": "cityOf", "object": "Denmark"},
        {"subject": "X", "property": "p", "object": "Y"},
    ]
    texts = [{"comment": "good", "lex": "Aarhus is Danish."}, {"comment": "toFix", "lex": "no"}]
    content = {"entries": [{"1": {"modifiedtripleset": triples, "lexicalisations": texts}}]}
    for name in ("train", "dev", "test"):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    rows = load_task(Settings("webnlg", data=str(tmp_path))).splits["test"]
    assert rows.first == [PROMPT.format("Aarhus : cityOf : Denmark | X : p : Y")]
    assert rows.labels == ["Aarhus is Danish."]


def test_dart_has_its_relations_in_lower_case(tmp_path):
    content = [{"tripleset": [["A", "IS_IN", "B"]], "annotations": [{"text": "A in B."}, {"text": "B holds A."}]}]
    for name in ("train", "dev", "test"):
        (tmp_path / f"dart-v1.1.1-full-{name}.json").write_text(json.dumps(content))
    rows = load_task(Settings("dart", data=str(tmp_path))).splits["train"]
    assert rows.first == [PROMPT.format("A : is_in : B")] * 2
    assert rows.labels == ["A in B.", "B holds A."]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "no bars here\n", r"line 1: 'no bars here' has no '\|\|'"),
        ("a.txt", "name : A||\n", "row 1: no sentence"),
        ("a.txt", "||words\n", "row 1: no facts"),
        ("a.json", "{}", "e2e is read from .txt or .csv files"),
        ("a.csv", "mr,text\nx,y\n", "ref"),
    ],
)
def test_faulty_files_are_named_with_the_place(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read_pairs(TASKS["e2e"], tmp_path / name)


def test_malformed_release_is_a_data_error(tmp_path):
    (tmp_path / "a.json").write_text('{"entries": [{"1": {}}]}')
    with pytest.raises(DataError, match="not in the form of the webnlg release"):
        read_pairs(TASKS["webnlg"], tmp_path / "a.json")


def test_a_folder_without_the_files_says_which(tmp_path):
    with pytest.raises(DataError, match=r"train\.txt and valid\.txt; or trainset\.csv and devset\.csv"):
        load_task(Settings("e2e", data=str(tmp_path)))


def test_hub_rows_have_the_same_form(data_hub):
    e2e = {"meaning_representation": "name[A], eatType[pub]", "human_reference": "A pub."}
    commit = put(data_hub, "tuetschek/e2e_nlg", [e2e], [e2e])
    told = {"target": "A pub.", "references": ["A pub."]}
    for name, config, facts in (
        ("GEM/web_nlg", "en", {"input": ["A | is_in | B", "A | p | C"]}),
        ("GEM/dart", "default", {"tripleset": [["A", "IS", "B"]]}),
    ):
        put(data_hub, name, [{**facts, **told}], [{**facts, **told}], config)
    found = {task: load_task(Settings(task)) for task in ("e2e", "webnlg", "dart")}
    assert [data.splits["test"].first[0] for data in found.values()] == [
        PROMPT.format("name : A | Type : pub"),
        PROMPT.format("A : is_in : B | A : p : C"),
        PROMPT.format("A : is : B"),
    ]
    assert all(data.splits["test"].labels == ["A pub."] for data in found.values())
    assert found["e2e"].pins == {"revision": commit} and commit in found["e2e"].source
    assert any("2017" in note for note in found["webnlg"].notes)


def test_hub_rows_in_another_form_are_refused(data_hub):
    put(data_hub, "tuetschek/e2e_nlg", [{"mr": "A"}], [{"mr": "A"}])
    with pytest.raises(WorkError, match=r"tuetschek/e2e_nlg@.* is not in the form .*task\.data"):
        load_task(Settings("e2e"))


@pytest.mark.parametrize(
    ("task", "name", "config", "facts", "prompt"),
    [
        ("webnlg", "GEM/web_nlg", "en", {"input": ["A | is_in | B"]}, PROMPT.format("A : is_in : B")),
        ("dart", "GEM/dart", "default", {"tripleset": [["A", "IS_IN", "B"]]}, PROMPT.format("A : is_in : B")),
    ],
)
def test_hub_evaluation_rows_have_every_reference(data_hub, task, name, config, facts, prompt):
    trained = [{**facts, "target": text, "references": [""]} for text in ("A in B.", "B holds A.")]
    judged = [
        {**facts, "target": "A in B.", "references": ["A in B.", "B holds A.", ""]},
        {**facts, "target": "", "references": [""]},
    ]
    put(data_hub, name, trained, judged, config)
    splits = load_task(Settings(task)).splits
    for split in ("train", "validation", "test"):
        assert splits[split].first == [prompt] * 2
        assert splits[split].labels == ["A in B.", "B holds A."]


def put(hub, name, trained, judged, config="default"):
    return hub.put_splits(name, {"train": trained, "validation": judged, "test": judged}, config)


def own(tmp_path, rows, **further):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Settings(
        "text-generation",
        train=str(tmp_path / "rows.jsonl"),
        **{"validation": 0.5, "prompt": "q", "completion": "a", **further},
    )


def test_own_prompts_are_unchanged(tmp_path):
    settings = own(tmp_path, [{"q": f"What is {n}? ", "a": str(n) + "!"} for n in range(4)])
    data = load_task(settings)
    assert sorted(data.splits["train"].first + data.splits["validation"].first) == [f"What is {n}? " for n in range(4)]
    assert len(data.splits["validation"]) == 2
    assert len(load_evaluation(settings, tmp_path / "rows.jsonl", None).splits["validation"]) == 4


def test_prompt_or_completion_that_is_not_text_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"row 2 .line 2., column 'a': no text"):
        load_task(own(tmp_path, [{"q": "x", "a": "y"}, {"q": "x", "a": ""}]))
    with pytest.raises(DataError, match="column 'a': 3 is not text"):
        load_task(own(tmp_path, [{"q": "x", "a": "y"}, {"q": "x", "a": 3}]))


def test_evaluation_rows_from_another_file(tmp_path):
    settings = Settings("e2e", data=str(e2e_folder(tmp_path)), max_eval=1)
    data = load_evaluation(settings, tmp_path / "test.txt", None)
    assert data.splits["validation"].labels == ["A is a pub ."]
