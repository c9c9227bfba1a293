"""Redaction of untrusted text: mask secrets, escape control characters, and refuse slow regular expressions."""

from __future__ import annotations

import os
import re

_MASK = "***"
_SHORTEST = 8  # a shorter value is not treated as a secret: masking it would hit ordinary words
_IN_ADDRESS = re.compile(r"(?<=://)[^/\s@\"']+(?=@)")
_IN_QUERY = re.compile(
    r"(?<=[?&])((?:access_?)?(?:token|key|secret|password|signature)|api_?key)=[^&\s\"']+", re.IGNORECASE
)
# The formats of Hugging Face, GitHub, GitLab, OpenAI and others, Slack and Amazon.
_TOKENS = re.compile(
    r"\b(?:(hf_|gh[pousr]_)[A-Za-z0-9]{20,}|(github_pat_|glpat-|xox[abp]-)[A-Za-z0-9_-]{20,}"
    r"|(sk-)[A-Za-z0-9_-]{40,}|(AKIA)[A-Z0-9]{16})"
)
_PATHS = ("/", "~", ".")  # SSH_KEY=/home/me would mask every path
_SECRET_NAME = re.compile(r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|KEY)$")
_LONGEST_PATTERN = 100_000


def redacted(text: str) -> str:
    """`text` with masked passwords in URLs, tokens, and secret values of this process's environment."""
    text = _IN_ADDRESS.sub(_MASK, text)
    text = _IN_QUERY.sub(rf"\1={_MASK}", text)
    text = _TOKENS.sub(lambda match: f"{next(filter(None, match.groups()))}{_MASK}", text)
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and _SECRET_NAME.search(name.upper()) and not value.startswith(_PATHS):
            text = text.replace(value, _MASK)
    return text


def printable(text: str) -> str:
    """`text` with control and invisible characters escaped; newlines and tabs stay."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def presentable(text: str) -> str:
    """`text` for a message: printable and without secrets."""
    return printable(redacted(text))


def may_run_for_ever(pattern: str) -> bool:
    """Whether a regular expression is over 100,000 characters long, or repeats a group that can match in several ways.

    Examples are (a+)+ and (a|a)*, whose time may double with every character of the input.
    """
    if len(pattern) > _LONGEST_PATTERN:
        return True
    open_groups = [False]
    closed = False
    plain = re.sub(r"\\.|\[\^?\]?(?:\\.|[^\]])*\]", "x", pattern, flags=re.DOTALL)
    for character in plain:
        if closed and character in "+*{":
            return True
        closed = False
        if character == "(":
            open_groups.append(False)
        elif character == ")" and len(open_groups) > 1:
            closed = open_groups.pop()
            open_groups[-1] |= closed
        elif character in "+*{|":
            open_groups[-1] = True
    return False
