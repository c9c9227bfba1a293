"""The form of a row of the table of methods: plain data, nothing heavy is imported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

LORA_KEYS = ("r", "alpha", "dropout", "use_rslora", "target_modules")
_FORMS = {"integer": "a whole number", "number": "a number", "flag": "true or false", "text": "text"}


@dataclass(frozen=True)
class Option:
    """A setting that one method has and others lack: a key of `method.options`.

    Attributes:
        name: the key.
        kind: "integer", "number", "flag", "text", or "choice" (one of `choices`).
        default: what it is when the recipe is silent.
        about: what it does, in words.
        choices: the values of a "choice".
        low: the smallest value allowed; None for no limit.
        high: the largest value allowed; None for no limit.
        above: `low` itself is not allowed.
        below: `high` itself is not allowed.
        optional: None (null) is allowed too.
    """

    name: str
    kind: Literal["integer", "number", "flag", "text", "choice"]
    default: Any
    about: str
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    above: bool = False
    below: bool = False
    optional: bool = False

    def read(self, value: Any) -> Any:
        """`value` in the option's own type where it has one: 1e3 is a whole number, 2 a number too."""
        if isinstance(value, bool):
            return value
        if self.kind == "number" and isinstance(value, int):
            return float(value)
        if self.kind == "integer" and isinstance(value, float) and value.is_integer():
            return int(value)
        return value

    def allows(self, value: Any) -> bool:
        """Whether `value`, as `read` gives it, is of the right type and within the limits."""
        if value is None:
            return self.optional
        if self.kind == "choice":
            return value in self.choices
        if self.kind == "flag":
            return isinstance(value, bool)
        if self.kind == "text":
            return isinstance(value, str) and value != ""
        if isinstance(value, bool) or not isinstance(value, int if self.kind == "integer" else float):
            return False
        low = self.low is None or value > self.low or (value == self.low and not self.above)
        high = self.high is None or value < self.high or (value == self.high and not self.below)
        return low and high and abs(value) < float("inf")

    @property
    def limits(self) -> str:
        """What is allowed, in words."""
        words = [" or ".join(f'"{one}"' for one in self.choices) if self.kind == "choice" else _FORMS[self.kind]]
        if self.low is not None:
            words.append(f"{'above' if self.above else 'of at least'} {self.low:g}")
        if self.high is not None:
            words.append(
                f"{'and' if self.low is not None else ''} {'below' if self.below else 'at most'} {self.high:g}"
            )
        if self.optional:
            words.append("or null")
        return " ".join(" ".join(words).split())


@dataclass(frozen=True)
class MethodInfo:
    """What is known of a method without importing it.

    `start`, `disable` and `merge` name the exceptions: each is empty where the law holds that a method begins as the
    base model, that switching it off gives the base model bit for bit, and that it can be merged into the base's
    weights.

    Attributes:
        name: the name in recipes and on the command line.
        title: the name in the field.
        paper: arXiv number or citation of its source.
        trains: what it trains, in words; the newly made head is trained by every method and not named.
        bases: the kinds of base model it works on, in words.
        implemented_by: the library whose code computes it.
        module: the module of kasatune that holds its `METHOD` object.
        reconstructed: true where the paper leaves out something essential and the gap was filled here.
        uses: the keys of a recipe's `method` section that it reads, besides `name` and `options`.
        options: its own settings.
        start: how the model that training begins with differs from the base.
        disable: why the base cannot be had back by switching the method off.
        merge: why it cannot be merged into the base's weights.
        kinds: the kinds of task that it can do.
        unable: why it cannot do the others.
    """

    name: str
    title: str
    paper: str
    trains: str
    bases: str
    implemented_by: str
    module: str
    reconstructed: bool = False
    uses: tuple[str, ...] = LORA_KEYS
    options: tuple[Option, ...] = ()
    start: str = ""
    disable: str = ""
    merge: str = ""
    kinds: tuple[str, ...] = ("classification", "regression", "generation")
    unable: str = ""

    @property
    def shown_title(self) -> str:
        """The title, with the mark of a method that was rebuilt from an incomplete source."""
        return f"{self.title} (reconstructed)" if self.reconstructed else self.title

    def complete(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """`given` with the defaults of what it leaves out, in the table's order; unknown keys come last."""
        own = {option.name: option.read(given.get(option.name, option.default)) for option in self.options}
        return {**own, **{str(name): value for name, value in given.items() if name not in own}}

    def option_faults(self, given: Mapping[str, Any]) -> Iterator[tuple[str, Any, Option | None]]:
        """(name, value, option) of each entry that is unknown (no option) or not allowed."""
        known = {option.name: option for option in self.options}
        for name, value in given.items():
            option = known.get(name)
            if option is None or not option.allows(option.read(value)):
                yield name, value, option
