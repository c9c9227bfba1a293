"""What the tabs of the page share: the workspace, started commands, loaded model, and how errors are shown."""

from __future__ import annotations

import functools
import inspect
import re
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
from markupsafe import Markup, escape

from kasatune.errors import InputError, KasatuneError
from kasatune.io.run_layout import REPORT
from kasatune.redaction import presentable
from kasatune.ui.jobs import Jobs, command_line
from kasatune.ui.live_run import LiveRuns
from kasatune.ui.workspace import Workspace

LARGEST_REPORT = 16 << 20
POLL_SECONDS = 2.0
_FOLLOW = """() => {
  const log = document.querySelector("#%s textarea");
  if (!log) return;
  if (!log.dataset.follow) {
    log.dataset.follow = "yes";
    log.addEventListener("scroll", () => {
      log.dataset.follow = log.scrollTop + log.clientHeight > log.scrollHeight - 30 ? "yes" : "no";
    });
  }
  if (log.dataset.follow === "yes") setTimeout(() => { log.scrollTop = log.scrollHeight; }, 50);
}"""
_RELOAD = re.compile(r'<meta http-equiv="refresh"[^>]*>')


@dataclass
class Page:
    """The state of the page, shared by all browsers that show it.

    Attributes:
        workspace: the folder that it works in.
        jobs: the commands that it started.
        live: histories of runs.
        largest_upload: bytes.
    """

    workspace: Workspace
    jobs: Jobs
    live: LiveRuns = field(default_factory=LiveRuns)
    largest_upload: int = 256 << 20
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def model_work(self) -> Generator[None]:
        """Work on a model in this process, one at a time.

        Raises:
            InputError: another one is in progress.
        """
        if not self._lock.acquire(timeout=1):
            raise InputError("the page is working on another model; wait until it is done")
        try:
            yield
        finally:
            self._lock.release()

    def report(self, path: str) -> Markup:
        """The report of a run or comparison as a frame that cannot reach the page around it."""
        directory = self.workspace.existing(path)
        file = self.workspace.root / directory / REPORT
        if not file.is_file() or file.is_symlink():
            return notice(f"{directory} has no {REPORT} yet.")
        if file.stat().st_size > LARGEST_REPORT:
            return notice(f"{directory / REPORT} is too large for this page; open the file in a browser.")
        text = _RELOAD.sub("", file.read_text(encoding="utf-8", errors="replace"))  # a frame without scripts refuses it
        return Markup('<iframe class="report" title="{}" sandbox="" srcdoc="{}"></iframe>').format(
            f"report of {directory}", text
        )


def reported(handler: Callable[..., Any]) -> Callable[..., Any]:
    """A handler of the page whose errors are shown in it, without a traceback."""
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def streaming(*arguments: Any) -> Any:
            try:
                yield from handler(*arguments)
            except Exception as error:
                raise _shown(error) from error

        return streaming

    @functools.wraps(handler)
    def wrapped(*arguments: Any) -> Any:
        try:
            return handler(*arguments)
        except Exception as error:
            raise _shown(error) from error

    return wrapped


def _shown(error: Exception) -> Exception:
    if isinstance(error, gr.Error):
        return error
    if isinstance(error, KasatuneError):
        message = str(error)
    elif isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        message = "out of memory; unload the model, or choose a smaller one"
    else:
        message = presentable(f"unexpected {type(error).__name__}: {error}")
    text = escape(message).replace("\n", Markup("<br>"))
    return gr.Error(str(text), duration=None, title="Error", print_exception=False)


def notice(text: str, kind: str = "note") -> Markup:
    """A sentence in the page; `kind` is "note", "fault" or "good"."""
    return Markup('<p class="notice {}">{}</p>').format(kind, text)


def listing(title: str, lines: Sequence[str], kind: str = "note") -> Markup:
    """A titled list of sentences; nothing for an empty one."""
    if not lines:
        return Markup("")
    items = Markup("").join(Markup("<li>{}</li>").format(line) for line in lines)
    return Markup('<div class="notice {}"><strong>{}</strong><ul>{}</ul></div>').format(kind, title, items)


def facts(pairs: Sequence[tuple[str, str]]) -> Markup:
    """Names with their values, as tiles."""
    tiles = Markup("").join(Markup("<div><dt>{}</dt><dd>{}</dd></div>").format(*pair) for pair in pairs)
    return Markup('<dl class="facts">{}</dl>').format(tiles)


def commands(*arguments: Sequence[str]) -> gr.Code:
    """The command lines that do the same, one per line, for a `command_box`."""
    return gr.Code(value="\n".join(command_line(line) for line in arguments), visible=True)


def command_box(label: str = "The same in a terminal") -> gr.Code:
    """A box for commands to copy; hidden until there are any."""
    return gr.Code(
        label=label, language=None, interactive=False, lines=1, wrap_lines=True, buttons=["copy"], visible=False
    )


def log_box(element: str, label: str | None = None) -> gr.Textbox:
    """A box for a log that grows; it follows the end, unless the reader has scrolled away from it."""
    # Gradio's own autoscroll does not follow a box that is not interactive.
    log = gr.Textbox(
        label=label, show_label=label is not None, lines=12, max_lines=12, interactive=False, autoscroll=False,
        elem_id=element,
    )  # fmt: skip
    log.change(None, None, None, js=_FOLLOW % element)
    return log


def changes(text: str) -> list[str]:
    """The lines `section.key=value` of a text box."""
    return [line.strip() for line in (text or "").splitlines() if line.strip()]


def relative(path: str | Path) -> str:
    """A path as it is written in commands."""
    return Path(path).as_posix()
