"""The page in a real browser: a dropped file, a run stopped and resumed, a chat, exports; 127.0.0.1 alone is asked.

The folder that KASATUNE_SCREENSHOTS names receives pictures of the tabs at 390 and 1280 pixels, light and dark; the
documentation shows some of them. CHROMIUM names the browser, if it is not `chromium` on the PATH.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest

from tests.text_toys import make_llama

BROWSER = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
WAIT = 240_000  # milliseconds; the machine may be busy
WORDS = ("red", "blue", "green", "one", "two", "three")
HOSTILE = "<img src=x onerror=alert(1)>.jsonl"
CHANGES = """task.max_length=32
task.validation=0.25
training.epochs=40
training.batch_size=4
training.learning_rate=0.02
training.device=cpu
generation.max_new_tokens=5"""

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(not BROWSER, reason="no chromium: install it, or set CHROMIUM to the program"),
]


@pytest.fixture
def served(tmp_path):
    """The folder and the address of a running page."""
    root = tmp_path / "work"
    make_llama(root / "models" / "llama")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (tmp_path / "ui.log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "kasatune", "ui", str(root), "--port", str(port)], stdout=log, stderr=log
    )
    address = f"http://127.0.0.1:{port}/"
    try:
        for _ in range(600):
            assert process.poll() is None, (tmp_path / "ui.log").read_text()
            try:
                urlopen(address, timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        yield root, address
    finally:
        process.terminate()
        process.wait(60)


def rows() -> list[dict[str, str]]:
    """Prompts with a word, to be answered with the two words after it."""
    number = len(WORDS)
    return [
        {"prompt": f"say {WORDS[i % number]} :", "completion": f"{WORDS[(i + 1) % number]} {WORDS[(i + 2) % number]}"}
        for i in range(48)
    ]


LOG_IS_AT_ITS_END = """() => {
  const log = document.querySelector("#log textarea");
  return log.scrollTop + log.clientHeight > log.scrollHeight - 30;
}"""
EXPORTS = {
    "lora": ("LoRA: PEFT", "adapter_model.safetensors", "kasatune export runs/toy --to lora --out adapters/toy-lora"),
    "gguf": ("GGUF: llama.cpp", "adapter.gguf", "kasatune export runs/toy --to gguf --out adapters/toy-gguf"),
    "ollama": ("Ollama: GGUF", "Modelfile", "kasatune export runs/toy --to ollama --out adapters/toy-ollama"),
    "merged": ("Merged: a plain", "model.safetensors", "kasatune merge runs/toy --out adapters/toy-merged"),
}
"""For each format: how its choice begins, a file of the result, and the command."""


def steps(root: Path) -> list[int]:
    """The numbers of the steps in the history of the run."""
    events = map(json.loads, (root / "runs" / "toy" / "history.jsonl").read_text().splitlines())
    return [event["step"] for event in events if event["event"] == "train"]


def test_from_a_dropped_file_to_a_chat_and_the_exports(served, tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    root, address = served
    table = tmp_path / HOSTILE
    table.write_text("".join(json.dumps(row) + "\n" for row in rows()), encoding="utf-8")
    asked: list[str] = []
    errors: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])

        def open_page():
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.set_default_timeout(WAIT)
            page.on("request", lambda request: asked.append(request.url))
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.on("dialog", lambda dialog: errors.append(dialog.message))
            page.goto(address)
            page.wait_for_selector("#upload input[type=file]", state="attached")
            return page

        page = open_page()
        page.set_input_files("#upload input[type=file]", str(table))
        page.wait_for_selector("text=columns prompt, completion")
        page.fill("#model input", "models/llama")
        page.keyboard.press("Enter")
        page.click("#make")
        page.wait_for_selector("#recipe >> text=text-generation")
        page.click("text=Change settings")
        page.get_by_label("Further changes, one a line").fill(CHANGES)
        page.fill("#name input, #name textarea", "toy")
        page.click("#check")
        page.wait_for_selector("text=Ready to start")
        page.locator("#rows").get_by_text("say red :").last.wait_for()
        page.click("#start")
        page.wait_for_selector("[data-state=starting], [data-state=running]")
        page.close()  # the run continues

        page = open_page()
        page.wait_for_selector("#live >> text=gradient norm")  # the first steps are done
        page.wait_for_function(LOG_IS_AT_ITS_END)
        page.click("#stop")
        page.wait_for_selector("[data-state=stopped]")
        done = len(steps(root))
        page.click("#resume")
        page.wait_for_selector("text=kasatune train runs/toy/recipe.yaml --out runs/toy --resume")
        page.wait_for_selector("[data-state=finished]")
        page.wait_for_function(LOG_IS_AT_ITS_END)
        assert 0 < done < 360
        assert steps(root) == list(range(1, 361))
        page.wait_for_selector("#live >> text=tokens per second")
        _pictures(page, "start")
        page.get_by_role("tab", name="Runs").click()
        page.locator("#runs").get_by_text("runs/toy").last.click()
        frame = page.wait_for_selector("#first-report iframe").content_frame()
        frame.wait_for_selector("text=KaSA on text-generation")
        _pictures(page, "runs")
        page.get_by_role("tab", name="Chat").click()
        page.click("#chat-run input")
        page.click("[role=option] >> text=runs/toy")
        page.fill("#message textarea", "say red :")
        page.click("#send")
        page.wait_for_function(
            "() => ['base', 'tuned'].every(name => {"
            " const bots = document.querySelectorAll(`#${name}-answers .bot`);"
            " return bots.length && bots[bots.length - 1].innerText.trim() })"
        )
        page.wait_for_selector("#tuned-answers >> text=blue green")
        _pictures(page, "chat")
        page.get_by_role("tab", name="Export").click()
        page.click("#export-run input")
        page.click("[role=option] >> text=runs/toy")
        for kind, (choice, file, command) in EXPORTS.items():
            page.click("#format input")
            page.locator("[role=option]").get_by_text(choice).click()
            page.wait_for_function(
                "name => document.querySelector('#export-name input, #export-name textarea').value == name",
                arg=f"toy-{kind}",
            )
            page.click("#export")
            page.wait_for_selector(f"text={command}")
            page.wait_for_selector(f"#export-result >> text=Written to adapters/toy-{kind}.")
            page.wait_for_selector(f"#export-result >> text={file}")
            page.wait_for_selector("#certificate >> text=kasatune")
            assert (root / "adapters" / f"toy-{kind}" / file).is_file()
            certificate = json.loads((root / "adapters" / f"toy-{kind}" / "certificate.json").read_text())
            assert certificate["to"] == {"merged": "checkpoint"}.get(kind, kind)
        page.click("#export")
        page.wait_for_selector("text=adapters/toy-merged exists; give another name")
        _pictures(page, "export")
        page.get_by_role("tab", name="Compare").click()
        _pictures(page, "compare")
        browser.close()
    assert [path.name for path in (root / "uploads").iterdir()] == ["img-src-x-onerror-alert-1.jsonl"]
    assert (root / "runs" / "toy" / "adapter").is_dir()
    assert {urlsplit(url).hostname for url in asked if not url.startswith(("data:", "blob:", "about:"))} == {
        "127.0.0.1"
    }
    assert errors == []


def _pictures(page, name: str) -> None:
    """Save pictures of a tab at two widths, light and dark, if they are wanted."""
    folder = os.environ.get("KASATUNE_SCREENSHOTS")
    if not folder:
        return
    for width in (1280, 390):
        for scheme in ("light", "dark"):
            page.set_viewport_size({"width": width, "height": 900})
            page.emulate_media(color_scheme=scheme)
            page.evaluate("dark => document.body.classList.toggle('dark', dark)", scheme == "dark")
            page.wait_for_timeout(700)
            page.screenshot(path=Path(folder, f"{name}-{width}-{scheme}.png"), full_page=True)
    page.set_viewport_size({"width": 1280, "height": 900})
    page.emulate_media(color_scheme="light")
    page.evaluate("document.body.classList.remove('dark')")
