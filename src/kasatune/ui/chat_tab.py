"""The tab Chat: base and tuned model beside each other; of classifiers, probabilities and the rows they disagree on."""

from __future__ import annotations

import threading
from collections.abc import Generator
from typing import Any

import gradio as gr
from markupsafe import Markup

from kasatune.data.tasks.table import TASKS
from kasatune.errors import InputError
from kasatune.runs.directory import read_recipe
from kasatune.ui.loaded_models import LoadedModel, disagreements
from kasatune.ui.page import Page, command_box, commands, notice, reported
from kasatune.wording import counted


def build(page: Page, tab: gr.Tab) -> None:
    """Add the tab's components, and connect them."""
    loaded, stop = LoadedModel(), threading.Event()
    with gr.Row():
        chosen = gr.Dropdown([], label="Run", elem_id="chat-run", scale=2)
        other = gr.Dropdown([], label="A second classifier (optional)", elem_id="chat-other", visible=False)
        unload = gr.Button("Unload the model", min_width=120)
    about = gr.HTML(elem_id="chat-about")
    with gr.Column(visible=False) as talk:
        with gr.Row():
            base_box = _chatbot("Base", "base-answers")
            tuned_box = _chatbot("Tuned", "tuned-answers")
        message = gr.Textbox(label="Message", lines=2, elem_id="message", max_length=20_000)
        with gr.Row():
            send = gr.Button("Send", variant="primary", elem_id="send")
            halt = gr.Button("Stop")
            new = gr.Button("New conversation")
        with gr.Accordion("Sampling and system message", open=False):
            system = gr.Textbox(label="System message", max_length=20_000)
            with gr.Row():
                tokens = gr.Number(0, label="longest answer; 0: the run's", precision=0, minimum=0, maximum=8192)
                temperature = gr.Number(0.0, label="temperature", minimum=0, maximum=5)
                seed = gr.Number(0, label="seed", precision=0, minimum=0, maximum=2**32 - 1)
    with gr.Column(visible=False) as classify:
        text = gr.Textbox(label="Text", lines=2, elem_id="classify-text", max_length=20_000)
        pair = gr.Textbox(label="Second text", lines=2, visible=False, max_length=20_000)
        ask = gr.Button("Predict", variant="primary", elem_id="predict")
        with gr.Row():
            first_label = gr.Label(label="Prediction", elem_id="first-label", num_top_classes=8)
            second_label = gr.Label(label="Prediction of the second", visible=False, num_top_classes=8)
        differ = gr.Button("Rows that one gets right and the other wrong", visible=False, elem_id="differ")
        differ_note = gr.HTML()
        differ_rows = gr.Dataframe(interactive=False, wrap=True, visible=False, max_height=420, elem_id="differing")
    command = command_box()

    def names(kinds: tuple[str, ...]) -> list[str]:
        runs = page.workspace.runs()
        return [run.path for run in runs if run.kind == "run" and run.task in TASKS and TASKS[run.task].kind in kinds]

    def choices() -> tuple[Any, Any]:
        everything = names(("generation", "classification", "regression"))
        return gr.Dropdown(choices=everything), gr.Dropdown(choices=["", *names(("classification",))])

    @reported
    def choose(name: str | None) -> tuple[Any, ...]:
        if not name:
            return gr.skip(), gr.skip(), gr.skip(), gr.skip(), gr.skip(), gr.skip(), gr.skip()
        recipe = _recipe(name)
        info = TASKS[recipe.task.name]
        is_text = info.kind == "generation"
        is_pair = isinstance(recipe.task.text, list) and len(recipe.task.text) == 2
        line = ["chat", name, "--beside"] if is_text else ["predict", name, "--text", "TEXT"]
        about = f"{recipe.method.name} on {info.title}, base model {recipe.model.name}."
        shown = [gr.Column(visible=is_text), gr.Column(visible=not is_text)]
        second = gr.Dropdown(visible=info.kind == "classification")
        return notice(about), *shown, second, gr.Textbox(visible=is_pair), commands(line), None

    def _recipe(name: str) -> Any:
        recipe = read_recipe(page.workspace.root / page.workspace.existing(name))
        page.workspace.require_inside(recipe)
        return recipe

    @reported
    def talk_to_both(
        name: str, text: str, base: list[Any], tuned: list[Any], system: str, tokens: int, warmth: float, seed: int
    ) -> Generator[tuple[Any, ...]]:
        if not (text or "").strip():
            raise InputError("the message is empty; write one")
        _recipe(name)
        stop.clear()
        question = {"role": "user", "content": text}
        histories = [[*(box or []), question, {"role": "assistant", "content": ""}] for box in (base, tuned)]
        yield histories[0], histories[1], ""
        options: dict[str, Any] = {"temperature": float(warmth or 0), "seed": int(seed or 0)}
        if tokens:
            options["max_new_tokens"] = int(tokens)
        with page.model_work():
            loaded.load(page.workspace.root, name)
            for which, piece in loaded.answer(text, system or "", options, stop):
                histories[which][-1]["content"] += piece
                yield histories[0], histories[1], ""
        for history in histories:
            history[-1]["content"] = history[-1]["content"] or "(empty)"
        yield histories[0], histories[1], ""

    @reported
    def predict_label(name: str, other: str | None, text: str, second_text: str) -> tuple[Any, ...]:
        from kasatune.evaluation.predict import predict

        results: list[Any] = []
        is_pair = False
        with page.model_work():
            for run in filter(None, (name, other)):
                recipe = _recipe(run)
                is_pair = isinstance(recipe.task.text, list) and len(recipe.task.text) == 2
                given: Any = [text, second_text] if is_pair else text
                (item,) = predict(page.workspace.root / run, [given])
                answer = item["prediction"]
                results.append(answer["scores"] if isinstance(answer, dict) else f"{answer:.4f}")
        labels = [gr.Label(value=results[0], label=name)]
        labels.append(gr.Label(value=results[1] if other else None, label=other or "", visible=bool(other)))
        typed = f"{text}\t{second_text}" if is_pair else text
        return *labels, commands(*(["predict", run, "--text", typed] for run in filter(None, (name, other))))

    @reported
    def show_differences(name: str, other: str | None) -> tuple[Any, ...]:
        if not other:
            raise InputError("no second classifier is chosen; choose one")
        first, second = (page.workspace.existing(run).as_posix() for run in (name, other))
        difference = disagreements(page.workspace.root, first, second, page.workspace.require_inside)
        left, right, rows = difference.counts
        sentence = (
            f"Of {counted(rows, 'row')}, {left:,} only {first} gets right, and {right:,} only {second} gets right."
        )
        table = gr.Dataframe(headers=difference.head, value=difference.rows, visible=bool(difference.rows))
        return notice(sentence), table

    @reported
    def free() -> Markup:
        with page.model_work():
            loaded.unload()
        return notice("No model is loaded.")

    def forget() -> tuple[Any, Any]:
        loaded.conversations.clear()
        return [], []

    tab.select(choices, None, [chosen, other], show_progress="hidden")
    chosen.change(choose, [chosen], [about, talk, classify, other, pair, command, base_box]).then(
        forget, None, [base_box, tuned_box]
    )
    other.change(lambda name: gr.Button(visible=bool(name)), [other], [differ])
    talking = [chosen, message, base_box, tuned_box, system, tokens, temperature, seed]
    for trigger in (send.click, message.submit):
        trigger(talk_to_both, talking, [base_box, tuned_box, message], concurrency_limit=1)
    halt.click(stop.set, None, None, queue=False)
    new.click(forget, None, [base_box, tuned_box])
    ask.click(predict_label, [chosen, other, text, pair], [first_label, second_label, command])
    differ.click(show_differences, [chosen, other], [differ_note, differ_rows])
    unload.click(free, None, [about])


def _chatbot(label: str, element: str) -> gr.Chatbot:
    """A conversation; the text of a model is shown as it is, and never rendered."""
    return gr.Chatbot(
        label=label, elem_id=element, render_markdown=False, height=340, buttons=["copy"], feedback_options=None
    )
