"""The `method` section of a recipe, as a method reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from kasatune.kasa.config import Convention, Core


class Calibration(Protocol):
    """The text on which the base is measured, read only."""

    @property
    def source(self) -> str:
        """Where it comes from: "auto", "task" or "generated"."""
        ...

    @property
    def rows(self) -> int:
        """The number of training rows."""
        ...


class MethodSettings(Protocol):
    """The `method` section of a recipe, read only. A method ignores the fields that it does not use."""

    @property
    def name(self) -> str:
        """The method's name."""
        ...

    @property
    def r(self) -> int:
        """The rank of the update."""
        ...

    @property
    def alpha(self) -> float:
        """The numerator of the scaling s."""
        ...

    @property
    def dropout(self) -> float:
        """The dropout probability on the input of A."""
        ...

    @property
    def use_rslora(self) -> bool:
        """True: s = alpha / sqrt(r); false: s = alpha / r."""
        ...

    @property
    def target_modules(self) -> str | Sequence[str]:
        """The layers to adapt: "default", "all-linear", a regular expression, or a list of name endings."""
        ...

    @property
    def convention(self) -> Convention:
        """The reading of KaSA: "paper" or "authors"."""
        ...

    @property
    def core(self) -> Core:
        """The form of sigma: "diagonal" or "dense"."""
        ...

    @property
    def truncation(self) -> str:
        """How the tail is held: "attach" or "fold"."""
        ...

    @property
    def beta(self) -> float:
        """The weight of sum(sigma^2)."""
        ...

    @property
    def gamma(self) -> float:
        """The weight of the orthogonality penalty."""
        ...

    @property
    def tails(self) -> str | None:
        """A directory of tails decomposed earlier; None for none."""
        ...

    @property
    def truncate_by(self) -> str | None:
        """Which component is dropped: "magnitude", "activation" or "sensitivity"; None for the method's own choice."""
        ...

    @property
    def drop(self) -> int | None:
        """The rank of the dropped component; None for the method's own choice."""
        ...

    @property
    def protect(self) -> float | None:
        """The share of input directions that A may not use; None for the method's own choice."""
        ...

    @property
    def anneal(self) -> float:
        """The share of the steps during which the dropped component fades back in; 0 for none."""
        ...

    @property
    def orthonormal(self) -> bool:
        """Whether A and B stay orthonormal."""
        ...

    @property
    def init(self) -> str:
        """The start of A and B: "random" or "gradient"."""
        ...

    @property
    def calibration(self) -> Calibration:
        """The text on which activations are measured."""
        ...

    @property
    def options(self) -> Mapping[str, Any]:
        """The method's own options, checked, with every option of its row present."""
        ...
