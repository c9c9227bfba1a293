"""The HTML report of a SimRAG run: scores of base and both stages, examples of the filter, leakage, time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

import kasatune.reports
from kasatune.io.atomic import write_text
from kasatune.io.run_layout import RECIPE, REPORT
from kasatune.reports import formatting
from kasatune.simrag.recipe import STAGE_ONE, STAGE_TWO
from kasatune.wording import agree, counted

SCORES = ("exact_match", "f1")
TITLES = {"base": "base", STAGE_ONE: "stage I", STAGE_TWO: "stage II"}
_CONTEXTS = {"passages": "with retrieved passages", "closed_book": "without passages"}

Content = Mapping[str, Any]


def write_report(result: Content, out: Path) -> None:
    """Write report.html from the content of simrag.json and the recipe in `out`."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("kasatune.simrag", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(sentence=formatting.sentence, count=formatting.count)
    style = Path(str(kasatune.reports.__file__)).with_name("page.css").read_text(encoding="utf-8")
    page = environment.get_template("report.html").render(
        result=result,
        style=Markup(style),
        conclusion=conclusion(result),
        setting=_setting(result),
        scores=score_tables(result),
        recall=_recall(result),
        answers=_answers(result),
        kept=kept_sentence(result),
        reasons=_reasons(result),
        examples=_examples(result),
        leakage=_leakage(result),
        facts=_facts(result),
        recipe=(out / RECIPE).read_text(encoding="utf-8"),
    )
    write_text(out / REPORT, page)


def conclusion(result: Content) -> str:
    """F1 of base, stage I and stage II, and whether stage II differs from stage I."""
    scores = result["passages"]["scores"]
    shown = ", ".join(f"{title} {formatting.score(scores[name]['f1'][0])}" for name, title in TITLES.items())
    second = next(d for d in result["passages"]["differences"] if (d["minus"], d["system"]) == (STAGE_ONE, STAGE_TWO))
    _, low, high = second["f1"]
    verdict = "better than" if low > 0 else "worse than" if high < 0 else "not distinguishable from"
    return f"F1 with retrieved passages: {shown}. Stage II is {verdict} stage I on these questions."


def score_tables(result: Content) -> list[dict[str, Any]]:
    """One table of scores and one of differences for answers with passages and for answers without."""
    tables = []
    titles = [formatting.metric_title(name) for name in SCORES]
    for context, words in _CONTEXTS.items():
        scores = result[context]["scores"]
        rows = [[title, *(_interval(scores[name][metric]) for metric in SCORES)] for name, title in TITLES.items()]
        if context == "passages":
            constant = result["constant_answer"]
            cells = [formatting.score(constant[metric]) for metric in SCORES]
            rows.append([f'always "{constant["answer"]}", the most frequent answer', *cells])
        tables.append({"caption": f"Scores {words}", "head": ["model", *titles], "rows": rows})
        rows = [
            [
                f"{TITLES[item['system']]} minus {TITLES[item['minus']]}",
                *(_interval(item[metric], signed=True) for metric in SCORES),
            ]
            for item in result[context]["differences"]
        ]
        tables.append({"caption": f"Differences {words}", "head": ["difference", *titles], "rows": rows})
    return tables


def kept_sentence(result: Content) -> str:
    """How much the filter kept, compared with the shuffled corpus."""
    record = result["filter"]
    made_from = counted(record["chunks"], "chunk")
    return (
        f"{record['kept']:,} of {counted(record['candidates'], 'pair')} made from {made_from} kept, "
        f"{record['trained']:,} of them trained on. The passages hold the answer of {record['retrieval_rate']:.1%} of "
        f"the questions that were asked; in a corpus of the same words in random order, of "
        f"{record['shuffled_retrieval_rate']:.1%}."
    )


def _interval(values: Sequence[float], *, signed: bool = False) -> str:
    show = formatting.signed if signed else formatting.score
    return f"{show(values[0])} [{show(values[1])}, {show(values[2])}]"


def _setting(result: Content) -> str:
    corpus = result["corpus"]
    between = {
        "continue": "Stage II continues the adapter of stage I.",
        "merge": "The adapter of stage I is merged into the base, and stage II begins a new one.",
    }[result["begin"]]
    return (
        f"{counted(corpus['documents'], 'document')}, {counted(corpus['chunks'], 'chunk')}, "
        f"{counted(corpus['passages'], 'passage')} in a prompt, retrieved by {corpus['retriever']}. {between}"
    )


def _recall(result: Content) -> str:
    text = f"The passages hold a right answer of {_interval(result['retrieval_recall'])} of the questions"
    document = result["evaluation"]["document_recall"]
    return f"{text}." if document is None else f"{text}, and are from the right document for {document:.1%}."


def _answers(result: Content) -> dict[str, Any]:
    rows = [
        [
            item["question"],
            " / ".join(item["right"]),
            "yes" if item["retrieved"] else "no",
            *(item[name] for name in TITLES),
        ]
        for item in result["answers"]
    ]
    head = ["question", "right", "retrieved", *TITLES.values()]
    return {"caption": f"The first {counted(len(rows), 'question')}", "head": head, "rows": rows}


def _reasons(result: Content) -> dict[str, Any]:
    record = result["filter"]
    rows = [["kept", f"{record['kept']:,}"]]
    rows += [[reason, f"{number:,}"] for reason, number in record["left_out"].items()]
    rows += [[f"no question asked: {why}", f"{number:,}"] for why, number in record["answers_left_out"].items()]
    rows += [[f"kind {kind}", f"{own['kept']:,} of {own['candidates']:,}"] for kind, own in record["by_kind"].items()]
    return {"caption": "Generated pairs", "head": ["decision", "pairs"], "rows": rows}


def _examples(result: Content) -> list[dict[str, Any]]:
    groups = []
    for group in result["filter"]["examples"]:
        rows = [
            [pair["question"], pair["answer"], pair["kind"], pair["chunk"], ", ".join(pair["passages"])]
            for pair in group["pairs"]
        ]
        title = "kept" if group["reason"] is None else f"thrown away: {group['reason']}"
        head = ["question", "answer", "kind", "made from", "retrieved"]
        groups.append({"title": title, "table": {"caption": "Examples", "head": head, "rows": rows}})
    return groups


def _leakage(result: Content) -> str:
    leakage, held_out = result["leakage"], result["evaluation"]["held_out_documents"]
    left_out = leakage["stage_one_left_out"]
    removed = "; ".join(f"{number:,} that {reason}" for reason, number in left_out.items()) or "none"
    made, shown = leakage["rows_from_held_out_documents"], leakage["rows_with_held_out_passages"]
    return (
        f"{counted(held_out, 'document')} that {agree(held_out, 'answers', 'answer')} the questions stay in the index. "
        f"Generated rows of stage II made from one of them: {made}; with a passage of one in the prompt: {shown}. "
        f"Rows removed from stage I: {removed}."
    )


def _facts(result: Content) -> list[dict[str, Any]]:
    kinds = [[kind, f"{number:,}"] for kind, number in result["evaluation"]["kinds"].items()]
    tables = [{"caption": "Evaluation questions", "head": ["kind", "questions"], "rows": kinds}]
    for stage in (STAGE_ONE, STAGE_TWO):
        rows = [[kind, f"{number:,}"] for kind, number in result["rows"][stage].items()]
        tables.append({"caption": f"Rows of {TITLES[stage]}", "head": ["kind", "rows"], "rows": rows})
    seconds = [[TITLES.get(step, step), formatting.duration(value)] for step, value in result["seconds"].items()]
    return [*tables, {"caption": "Time", "head": ["step", "time"], "rows": seconds}]
