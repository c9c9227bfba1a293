"""`kasatune serve`: OpenAI's protocol, base and tuned model under two names, and what is refused."""

from __future__ import annotations

import json
import socket
import threading
import time

import openai
import pytest
import uvicorn

from kasatune.adapter_tools.chat import open_chat
from kasatune.adapter_tools.serve import build_app, require_name, served_models
from kasatune.errors import InputError
from kasatune.evaluation.predict import predict
from kasatune.evaluation.task_model import TaskModel
from kasatune.llm_client.client import ChatClient
from kasatune.llm_client.request import ChatRequest, Endpoint, Refusal
from kasatune.recipes.schema import Recipe
from kasatune.runs.directory import read_recipe
from kasatune.training.train import train
from tests.text_toys import make_llama, make_text_recipe, write_jsonl

QUESTION = "say red blue :"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run on conversations and one on prompts, with a rate that changes answers."""
    place = tmp_path_factory.mktemp("serve")
    model = make_llama(place / "model")
    chats = [{"instruction": f"say {word} :", "output": "two three"} for word in ("red", "blue", "one", "pub")]
    recipe = Recipe.model_validate(
        {
            "model": {"name": str(model)},
            "task": {
                "name": "instruction",
                "train": str(write_jsonl(place / "train.jsonl", chats * 3)),
                "validation": str(write_jsonl(place / "valid.jsonl", chats[:2])),
                "max_length": 40,
            },
            "method": {"r": 2, "alpha": 16, "target_modules": ["q_proj", "down_proj"]},
            "training": {"epochs": 2, "batch_size": 4, "learning_rate": 0.05, "device": "cpu"},
            "generation": {"max_new_tokens": 5},
        }
    )
    text = make_text_recipe(model, place / "data", max_steps=2, learning_rate=0.05)
    return train(recipe, place / "chats"), train(text, place / "prompts")


class Server:
    """A server in a thread of this process."""

    def __init__(self, given: str, **options: str) -> None:
        self.models = served_models(open_chat(given, options.pop("base", None)), **options)
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        self._server = uvicorn.Server(uvicorn.Config(build_app(self.models), log_level="error"))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]}, daemon=True)
        self._thread.start()
        deadline = time.monotonic() + 60
        while not self._server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        self.client = openai.OpenAI(base_url=self.url, api_key="none", max_retries=0, timeout=120)

    def stop(self) -> None:
        self.client.close()
        self._server.should_exit = True
        self._thread.join(60)


@pytest.fixture(scope="module")
def chats(runs):
    server = Server(str(runs[0]))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def prompts(runs):
    server = Server(str(runs[1]), name="mine")
    yield server
    server.stop()


def ask(server, text=QUESTION, model="tuned", **options):
    return server.client.chat.completions.create(model=model, messages=[{"role": "user", "content": text}], **options)


def error(call, *arguments, **options):
    with pytest.raises(openai.APIStatusError) as caught:
        call(*arguments, **options)
    return caught.value


def test_both_models_are_listed(chats):
    assert [model.id for model in chats.client.models.list()] == ["tuned", "base"]


def test_the_tuned_model_answers_as_predict_and_the_base_as_untouched(chats, runs):
    tuned = ask(chats)
    assert tuned.model == "tuned"
    assert tuned.choices[0].message.content == predict(runs[0], [QUESTION])[0]["prediction"]["text"]
    assert tuned.usage.completion_tokens > 0
    base = ask(chats, model="base").choices[0].message.content
    assert base == TaskModel.for_base(read_recipe(runs[0]), None).answer([[("user", QUESTION)]])[0]
    assert base != tuned.choices[0].message.content
    assert ask(chats).choices[0].message.content == tuned.choices[0].message.content


def test_a_stream_has_the_pieces_of_the_answer_and_ends(chats):
    with chats.client.chat.completions.with_streaming_response.create(
        model="tuned", messages=[{"role": "user", "content": QUESTION}], stream=True
    ) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    chunks = [json.loads(line) for line in lines[:-1]]
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    assert text.strip() == ask(chats).choices[0].message.content.strip()
    assert chunks[-1]["choices"][0]["finish_reason"] in ("stop", "length")


def test_a_wrong_name_is_refused_with_the_names_that_exist(chats):
    fault = error(ask, chats, model="gpt-4")
    assert fault.status_code == 404
    assert fault.body["code"] == "model_not_found"
    assert "model: 'gpt-4' received; this server has tuned, base" in str(fault)


def test_the_judges_client_asks_it(chats):
    client = ChatClient(Endpoint("tuned", chats.url, retries=0))
    reply = client.send(ChatRequest("tuned", (("user", QUESTION),), 0.0, 5))
    assert reply.text == ask(chats).choices[0].message.content
    assert reply.completion_tokens is not None
    refusal = client.send(ChatRequest("tuned", (("assistant", "red"),), 0.0, 5))
    assert isinstance(refusal, Refusal)
    client.close()
    wrong = ChatClient(Endpoint("other", chats.url, retries=0))
    with pytest.raises(InputError, match="no model 'other' there"):
        wrong.send(ChatRequest("other", (("user", QUESTION),), 0.0, 5))
    wrong.close()


def test_max_tokens_temperature_and_seed_are_heeded(chats):
    short = ask(chats, max_tokens=1)
    assert (short.usage.completion_tokens, short.choices[0].finish_reason) == (1, "length")
    assert ask(chats, max_completion_tokens=2).usage.completion_tokens <= 2
    drawn = {ask(chats, temperature=2.0, seed=seed, max_tokens=8).choices[0].message.content for seed in range(6)}
    assert len(drawn) > 1
    again = [ask(chats, temperature=2.0, seed=3, max_tokens=8).choices[0].message.content for _ in range(2)]
    assert again[0] == again[1]


def test_an_answer_never_exceeds_the_positions_of_the_model(chats):
    assert ask(chats, max_tokens=100_000).usage.total_tokens <= 64
    fault = error(ask, chats, "red " * 80)
    assert fault.status_code == 400
    assert "the model 64 positions for prompt and answer" in str(fault)


def test_stop_texts_are_cut_from_the_answer(chats):
    full = ask(chats, max_tokens=8).choices[0].message.content
    word = full.split()[-1]
    cut = ask(chats, max_tokens=8, stop=word).choices[0]
    assert word not in cut.message.content
    assert cut.finish_reason == "stop"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 2}, "n: 2 received; this server does not support it"),
        ({"logprobs": True}, "logprobs: True received"),
        ({"tools": [{"type": "function"}]}, "tools: "),
        ({"temperature": -1}, "temperature: -1 received; must be a number from 0 to 2"),
        ({"top_p": 3}, "top_p: 3 received"),
        ({"max_tokens": 0}, "max_tokens: 0 received; must be a whole number, 1 or more"),
        ({"stop": [""]}, "stop: "),
        ({"extra_body": {"colour": 1}}, "colour"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(chats, options, message):
    assert message in str(error(ask, chats, **options))


def test_fields_without_effect_are_accepted(chats):
    assert ask(chats, n=1, user="me", logprobs=False, presence_penalty=0).choices


@pytest.mark.parametrize("content", [None, 3, [{"type": "image_url", "image_url": {"url": "x"}}]])
def test_messages_that_are_no_text_are_refused(chats, content):
    with pytest.raises(openai.BadRequestError, match="message 1: "):
        chats.client.chat.completions.create(model="tuned", messages=[{"role": "user", "content": content}])


def test_a_body_that_is_no_object_is_refused(chats):
    import urllib.error
    import urllib.request

    request = urllib.request.Request(
        f"{chats.url}/chat/completions", data=b"[1]", headers={"Content-Type": "application/json"}
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request)
    assert caught.value.code == 400
    assert "no JSON object" in json.loads(caught.value.read())["error"]["message"]


def test_a_model_of_prompts_completes_them_and_refuses_conversations(prompts, runs):
    assert [model.id for model in prompts.client.models.list()] == ["mine", "base"]
    done = prompts.client.completions.create(model="mine", prompt=QUESTION)
    assert done.choices[0].text.strip() == predict(runs[1], [QUESTION])[0]["prediction"]["text"]
    assert prompts.client.completions.create(model="mine", prompt=[QUESTION]).choices[0].text == done.choices[0].text
    assert "use /v1/completions" in str(error(ask, prompts, model="mine"))
    assert "prompt: 2 prompts received; give one" in str(
        error(prompts.client.completions.create, model="mine", prompt=["a", "b"])
    )


def test_base_and_tuned_can_be_asked_at_once(prompts):
    expected = {
        model: prompts.client.completions.create(model=model, prompt=QUESTION).choices[0].text
        for model in ("mine", "base")
    }
    answers = {"mine": [], "base": []}

    def many(model):
        for _ in range(4):
            answers[model].append(prompts.client.completions.create(model=model, prompt=QUESTION).choices[0].text)

    threads = [threading.Thread(target=many, args=(model,)) for model in answers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {model: [text] * 4 for model, text in expected.items()}


def test_an_adapter_and_a_plain_model_are_served(runs):
    adapter = served_models(open_chat(str(runs[0] / "adapter")))
    assert list(adapter) == ["tuned", "base"]
    model = read_recipe(runs[0]).model.name
    assert list(served_models(open_chat(model))) == ["base"]


@pytest.mark.parametrize("name", ["base", " ", "x.gguf"])
def test_names_that_cannot_be_told_apart_are_refused(name):
    with pytest.raises(InputError, match="--name"):
        require_name(name)


def test_the_log_probabilities_of_a_prompt_are_those_of_the_model(prompts, runs):
    task_model = TaskModel.for_saved_run(read_recipe(runs[1]), None, runs[1])
    tokenizer = task_model.base.tokenizer
    context, continuation = tokenizer("say red blue :")["input_ids"], tokenizer(" two three")["input_ids"][1:]
    expected = task_model.log_likelihoods([("say red blue :", " two three")])[0]
    asked = {"model": "mine", "echo": True, "logprobs": 2, "max_tokens": 1, "temperature": 0}
    answer = prompts.client.completions.create(prompt=[context + continuation], **asked)
    given = answer.choices[0].logprobs
    assert given.token_logprobs[0] is None and given.top_logprobs[0] is None
    assert sum(given.token_logprobs[len(context) : -1]) == pytest.approx(expected, abs=1e-4)
    assert given.tokens[1:-1] == ["say", "red", "blue", ":", "two", "three"]
    assert all(
        len(top) == 2 and max(top.values()) >= own
        for top, own in zip(given.top_logprobs[1:], given.token_logprobs[1:], strict=True)
    )
    assert max(given.top_logprobs[-1].values()) == given.token_logprobs[-1]  # the token that follows
    as_text = prompts.client.completions.create(prompt="say red blue : two three", **asked | {"max_tokens": 0})
    assert as_text.choices[0].logprobs.token_logprobs == given.token_logprobs[:-1]
    two = prompts.client.completions.create(prompt=[context, context + continuation], **asked)
    assert [choice.index for choice in two.choices] == [0, 1]
    assert two.choices[1].logprobs.token_logprobs == given.token_logprobs
    base = prompts.client.completions.create(prompt=[context + continuation], **asked | {"model": "base"})
    assert base.choices[0].logprobs.token_logprobs != given.token_logprobs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 5}, "max_tokens: 5 received; with echo and logprobs it must be 0 or 1"),
        ({"max_tokens": None}, "max_tokens: None received"),
        ({"logprobs": 21}, "logprobs: 21 received; must be a whole number from 0 to 20"),
        ({"temperature": 0.5}, "at once and without sampling"),
        ({"prompt": [[1, -1]]}, "prompt: "),
        ({"prompt": [[999]]}, "999"),
        ({"prompt": []}, "prompt: [] received"),
        ({"prompt": "red " * 80}, "the prompt has 81 tokens, and the model 64 positions"),
        ({"model": "other"}, "this server has mine, base"),
        ({"frequency_penalty": 1}, "frequency_penalty: not supported with echo and logprobs"),
    ],
)
def test_log_probabilities_that_cannot_be_given_are_refused(prompts, options, message):
    asked = {"model": "mine", "prompt": "red", "echo": True, "logprobs": 1, "max_tokens": 1, **options}
    assert message in str(error(prompts.client.completions.create, **asked))


def test_a_prompt_of_tokens_is_completed_as_its_text(prompts, runs):
    tokens = TaskModel.for_base(read_recipe(runs[1]), None).base.tokenizer(QUESTION)["input_ids"]
    text = prompts.client.completions.create(model="mine", prompt=QUESTION)
    for prompt in (tokens, [tokens]):
        done = prompts.client.completions.create(model="mine", prompt=prompt)
        assert (done.choices[0].text, done.usage.prompt_tokens) == (text.choices[0].text, len(tokens))


HARNESS = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
{more}
"""


def test_lm_eval_scores_both_models_through_the_server(chats, prompts, runs, tmp_path):
    """lm-eval as a client: log-likelihoods and texts of `local-completions`, answers of `local-chat-completions`."""
    lm_eval = pytest.importorskip("lm_eval")
    pytest.importorskip("tenacity", reason="the clients of lm-eval need lm_eval[api]")
    from lm_eval.tasks import TaskManager

    questions = ["say red blue :", "say one two :", "say pub cafe :"]
    choices = [" two three", " red", " pub cafe"]
    task_model = TaskModel.for_saved_run(read_recipe(runs[1]), None, runs[1])
    values = [task_model.log_likelihoods([(question, choice) for choice in choices]) for question in questions]
    best = [max(range(3), key=row.__getitem__) for row in values]
    written = [one["prediction"]["text"] for one in predict(runs[1], questions)]
    answered = [one["prediction"]["text"] for one in predict(runs[0], questions)]
    rows = {
        "chosen": [{"question": q, "choices": choices, "answer": b} for q, b in zip(questions, best, strict=True)],
        "written": [{"question": q, "answer": a} for q, a in zip(questions, written, strict=True)],
        "answered": [{"question": q, "answer": a} for q, a in zip(questions, answered, strict=True)],
    }
    until = "generation_kwargs: {until: [], do_sample: false, max_gen_toks: 5}\nmetric_list: [{metric: exact_match}]"
    for name, content in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
        kind = "multiple_choice" if name == "chosen" else "generate_until"
        more = 'doc_to_choice: "{{choices}}"\ntarget_delimiter: ""\nmetric_list: [{metric: acc}]'
        task = HARNESS.format(
            name=name, rows=tmp_path / f"{name}.jsonl", kind=kind, more=more if kind[0] == "m" else until
        )
        (tmp_path / f"{name}.yaml").write_text(task)
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)

    def scores(kind, server, model, tasks, **more):
        place = "chat/completions" if "chat" in kind else "completions"
        arguments = {"model": model, "base_url": f"{server.url}/{place}", "max_retries": 1, **more}
        done = lm_eval.simple_evaluate(
            model=kind, model_args=arguments, tasks=tasks, task_manager=manager, apply_chat_template="chat" in kind
        )
        return {
            name: next(value for key, value in result.items() if key.startswith(("acc,", "exact_match,")))
            for name, result in done["results"].items()
        }

    tokens = {"tokenizer": str(runs[1] / "adapter"), "add_bos_token": True, "max_length": 64}
    assert scores("local-completions", prompts, "mine", ["chosen", "written"], **tokens) == {"chosen": 1, "written": 1}
    assert scores("local-completions", prompts, "base", ["written"], **tokens)["written"] < 1
    assert scores("local-chat-completions", chats, "tuned", ["answered"]) == {"answered": 1}
    assert scores("local-chat-completions", chats, "base", ["answered"])["answered"] < 1
