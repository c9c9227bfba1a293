"""`MethodInfo` and `Option`: the facts about a method that the program needs without importing the method.

Plain data; nothing here imports torch, transformers or PEFT. What the rest of the program does with a method is decided
by these facts: no other module names one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

LORA_KEYS = ("r", "alpha", "dropout", "use_rslora", "target_modules")
_KIND_WORDS = {"integer": "a whole number", "number": "a number", "flag": "true or false", "text": "text"}
_JSON_TYPES = {"integer": "integer", "number": "number", "flag": "boolean", "text": "string"}

OptionKind = Literal["integer", "number", "flag", "text", "choice"]
TaskKind = Literal["classification", "regression", "generation"]


@dataclass(frozen=True)
class Option:
    """A setting that only one method has: a key of `method.options` in a recipe.

    Attributes:
        name: the key.
        kind: "integer", "number", "flag", "text", or "choice" (one of `choices`).
        default: the value if the recipe does not set the key.
        about: what the setting does.
        choices: the values of a "choice".
        low: lower limit, None for no limit; allowed itself unless `above`.
        high: upper limit, None for no limit; allowed itself unless `below`.
        above: the value must be greater than `low`.
        below: the value must be less than `high`.
        optional: None (null in YAML) is allowed too.
        written_if_set: left out of a written recipe at its default: the hash of a recipe that is older than the option
            stays as is.
    """

    name: str
    kind: OptionKind
    default: Any
    about: str
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    above: bool = False
    below: bool = False
    optional: bool = False
    written_if_set: bool = False

    def read(self, value: Any) -> Any:
        """`value` converted to the option's type where the two are equal: 1e3 to 1000, 2 to 2.0."""
        if isinstance(value, bool):
            return value
        if self.kind == "number" and isinstance(value, int):
            return float(value)
        if self.kind == "integer" and isinstance(value, float) and value.is_integer():
            return int(value)
        return value

    def allows(self, value: Any) -> bool:
        """Whether `value`, as returned by `read`, has the right type and lies within the limits."""
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
        """The allowed values in words, such as "a number of at least 1 or null"."""
        values = " or ".join(f'"{choice}"' for choice in self.choices)
        words = [values if self.kind == "choice" else _KIND_WORDS[self.kind]]
        if self.low is not None:
            words.append(f"{'above' if self.above else 'of at least'} {self.low:g}")
        if self.high is not None:
            words.append(
                f"{'and' if self.low is not None else ''} {'below' if self.below else 'at most'} {self.high:g}"
            )
        if self.optional:
            words.append("or null")
        return " ".join(" ".join(words).split())

    def json_schema(self) -> dict[str, Any]:
        """The JSON schema of the option's value, with its limits, default and description."""
        schema: dict[str, Any] = {"description": self.about, "default": self.default}
        if self.kind == "choice":
            return {**schema, "enum": [*self.choices, *([None] if self.optional else [])]}
        schema["type"] = [_JSON_TYPES[self.kind], "null"] if self.optional else _JSON_TYPES[self.kind]
        if self.kind == "text":
            schema["minLength"] = 1
        if self.low is not None:
            schema["exclusiveMinimum" if self.above else "minimum"] = self.low
        if self.high is not None:
            schema["exclusiveMaximum" if self.below else "maximum"] = self.high
        return schema


@dataclass(frozen=True)
class MethodInfo:
    """The row of one method in the table.

    `start`, `disable` and `merge` name exceptions. Each is empty if the rule holds: training begins with a model that
    computes what the base computes; switching the method off restores the base's outputs bit for bit; the method can be
    merged into the base's weights.

    Attributes:
        name: the name in recipes and on the command line.
        title: the name in the literature.
        paper: arXiv number or citation; "none" for a method without a paper.
        trains: what it trains, in words. A new head is trained by every method and not mentioned.
        parameters: the number of trained parameters as a formula. `in` and `out` are those of an adapted layer, summed
            over the layers; d is the model's width, f the width of its feed-forward part, L the number of blocks.
        bases: the kinds of base model that it works on, in words.
        implemented_by: the library whose code computes it.
        module: the Python module that holds its `METHOD` object.
        aliases: other names accepted in recipes and on the command line.
        reconstructed: the source leaves out something essential, which was filled in here.
        uses: the keys of the `method` section of a recipe that it reads, besides `name` and `options`.
        options: the settings that only this method has.
        start: how the model at the start of training differs from the base.
        disable: why switching the method off does not restore the base.
        merge: why it cannot be merged into the base's weights.
        kinds: the kinds of task that it can do.
        unable: why it cannot do the others.
        needs_float_base: it does not work on a quantized base.
        drops_triplets: it drops up to r singular triplets of each adapted weight: r must be less than min(out, in).
        trains_base_weights: the trained parameters are parameters of the base model and add nothing to its memory.
        frozen_rank: rank of the frozen factors that each adapted layer holds besides the trained ones, in units of r.
        searched: keys that `kasatune compare` searches besides the learning rate, from 1/10 to 10 times their value.
        highlight: drawn in the first colour of charts.
        fitted: computed in one step, without gradient steps; there is no learning rate to search.
        no_preference: why it cannot be trained by comparison with a reference (DPO); empty if it can.
        no_reward: why it cannot train a reward model; empty if it can.
        continues: its adapter holds what it trains, so that a later run can train it further (`model.adapter`).
        adapter_note: how `adapter/` holds the result as a plain LoRA, for its model card; empty if `adapter/` holds the
            method's own kind of PEFT adapter, or does not exist.
    """

    name: str
    title: str
    paper: str
    trains: str
    parameters: str
    bases: str
    implemented_by: str
    module: str
    aliases: tuple[str, ...] = ()
    reconstructed: bool = False
    uses: tuple[str, ...] = LORA_KEYS
    options: tuple[Option, ...] = ()
    start: str = ""
    disable: str = ""
    merge: str = ""
    kinds: tuple[TaskKind, ...] = ("classification", "regression", "generation")
    unable: str = ""
    needs_float_base: bool = False
    drops_triplets: bool = False
    trains_base_weights: bool = False
    frozen_rank: int = 0
    searched: tuple[str, ...] = ()
    highlight: bool = False
    fitted: bool = False
    no_preference: str = ""
    no_reward: str = ""
    continues: bool = False
    adapter_note: str = ""

    @property
    def shown_title(self) -> str:
        """The title, marked if the method was reconstructed from an incomplete source."""
        return f"{self.title} (reconstructed)" if self.reconstructed else self.title

    def complete(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """`given` with defaults for missing options, in the order of the row; unknown keys come last."""
        own = {option.name: option.read(given.get(option.name, option.default)) for option in self.options}
        return {**own, **{str(name): value for name, value in given.items() if name not in own}}

    def written(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Complete options as a recipe writes them, see `Option.written_if_set`."""
        left_out = {option.name: option.default for option in self.options if option.written_if_set}
        return {name: value for name, value in options.items() if name not in left_out or value != left_out[name]}

    def option_faults(self, given: Mapping[str, Any]) -> Iterator[tuple[str, Any, Option | None]]:
        """(name, value, option) of each entry that is unknown (option is None) or not allowed."""
        known = {option.name: option for option in self.options}
        for name, value in given.items():
            option = known.get(name)
            if option is None or not option.allows(option.read(value)):
                yield name, value, option
