"""A method on top of another method, which trains the other one's adapters in its own way."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from kasatune import methods
from kasatune.methods.shared.capabilities import CAPABILITIES
from kasatune.methods.shared.method import Method, MethodSettings, TaskKind
from kasatune.methods.table import METHODS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_WRAPPED = "wrapped_method"


class WrappingMethod(Method):
    """A method that has every capability of the method underneath.

    A subclass defines only what it adds, and calls `super()` for what the method underneath does.
    """

    @abstractmethod
    def wrapped_name(self, settings: MethodSettings) -> str:
        """The name of the method underneath."""

    def attach(
        self, model: PreTrainedModel, settings: MethodSettings, kind: TaskKind, new_modules: Sequence[str]
    ) -> nn.Module:
        """See `Method.attach`."""
        name = self.wrapped_name(settings)
        attached = methods.load(name).attach(model, _under_name(settings, name), kind, new_modules)
        setattr(attached, _WRAPPED, name)
        return attached

    def save(self, model: nn.Module, run_dir: Path, base_name: str) -> None:
        """See `Method.save`; the files are those of the method underneath."""
        methods.load(getattr(model, _WRAPPED)).save(model, run_dir, base_name)

    def load(self, base: PreTrainedModel, run_dir: Path, settings: MethodSettings) -> nn.Module:
        """See `Method.load`."""
        name = self.wrapped_name(settings)
        model = methods.load(name).load(base, run_dir, _under_name(settings, name))
        setattr(model, _WRAPPED, name)
        return model


def _delegate(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of the method underneath, which the settings name or, without settings, the attached model."""
    signature = inspect.signature(function)

    def call(self: WrappingMethod, *args: Any, **kwargs: Any) -> Any:
        given = signature.bind(self, *args, **kwargs)
        settings = given.arguments.get("settings")
        if settings is None:
            name = getattr(given.arguments["model"], _WRAPPED)
        else:
            name = self.wrapped_name(settings)
            given.arguments["settings"] = _under_name(settings, name)
        return getattr(methods.load(name), function.__name__)(*given.args[1:], **given.kwargs)

    call.__name__, call.__doc__ = function.__name__, function.__doc__
    return call


for _capability in CAPABILITIES:
    for _name, _function in vars(_capability).items():
        if inspect.isfunction(_function):
            setattr(WrappingMethod, _name, _delegate(_function))
for _function in (Method.trained_parameters, Method.stored_numbers):
    setattr(WrappingMethod, _function.__name__, _delegate(_function))


class _RenamedSettings:
    """Settings under the name of another method, with the defaults of that method's options."""

    def __init__(self, settings: MethodSettings, name: str) -> None:
        self.name = name
        self.options = METHODS[name].complete({})
        self._settings = settings

    def __getattr__(self, key: str) -> Any:
        return getattr(self._settings, key)


def _under_name(settings: MethodSettings, name: str) -> MethodSettings:
    return cast(MethodSettings, _RenamedSettings(settings, name))
