"""The exceptions of kasatune and their exit status on the command line.

KasatuneError
├── InputError (2)            the user's input was invalid; also a ValueError
│   ├── RecipeError           a recipe; lists all of its faults
│   ├── DataError             a data set
│   ├── ModelError            a base model, or a layer that cannot be adapted
│   ├── AdapterError          adapter files
│   │   └── NotFiniteError    they hold NaN or infinity
│   ├── OutputError           an output path that is occupied or not writable
│   ├── UnknownSettingError   a setting that a configuration does not have; also a TypeError
│   └── MissingExtraError     an optional part that is not installed, or in too low a version
└── WorkError (1)             the inputs were valid, but the operation failed
    ├── DivergedError         the loss became NaN or infinite
    └── CheckError            a conversion, merge or verification exceeded its bound; also a ValueError
"""

from __future__ import annotations

from collections.abc import Sequence

from kasatune.redaction import presentable
from kasatune.wording import counted

_MOST_FAULTS = 20


class KasatuneError(Exception):
    """Base of every exception that kasatune raises; secrets and control characters are removed from its message."""

    exit_status = 1

    def __init__(self, *args: object) -> None:
        super().__init__(*(presentable(part) if isinstance(part, str) else part for part in args))


class InputError(KasatuneError, ValueError):
    """The input was invalid: the message names the value received, the limit and the remedy."""

    exit_status = 2


class RecipeError(InputError):
    """A recipe has faults.

    Args:
        faults: one sentence per fault, as "section.key: value, limit, remedy".
        source: the origin of the recipe, for the first line of the message.
    """

    def __init__(self, faults: Sequence[str], source: str = "recipe") -> None:
        self.faults = tuple(presentable(fault) for fault in faults)
        self.source = source
        lines = "\n".join(f"  - {fault}" for fault in self.faults[:_MOST_FAULTS])
        more = f"\n  and {len(self.faults) - _MOST_FAULTS:,} more" if len(self.faults) > _MOST_FAULTS else ""
        super().__init__(f"{source}: {counted(len(self.faults), 'fault')}\n{lines}{more}")


class DataError(InputError):
    """A data set is missing, unreadable or inconsistent."""


class ModelError(InputError):
    """A base model is missing or unsuitable, or one of its layers cannot be adapted."""


class AdapterError(InputError):
    """Adapter files are missing, damaged, or belong to another base model."""


class NotFiniteError(AdapterError):
    """Adapter files hold NaN or infinity."""


class OutputError(InputError):
    """An output path is occupied or cannot be written."""


class UnknownSettingError(InputError, TypeError):
    """A configuration does not have a setting of this name; also a TypeError, as for any unknown argument."""


class MissingExtraError(InputError, ImportError):
    """A dependency is missing or too old; also an ImportError, so that `try: from kasatune import train` works.

    Args:
        what: the feature that needs it.
        extra: the extra of kasatune that installs it.
        missing: the modules that were not found, for the message.
        outdated: packages whose version is too low, each with this version and the lowest that works.
    """

    def __init__(
        self, what: str, extra: str, missing: Sequence[str] = (), outdated: Sequence[tuple[str, str, str]] = ()
    ) -> None:
        self.extra = extra
        needs: list[str] = []
        if missing or not outdated:
            needed = ", ".join(missing) or "an optional dependency"
            needs.append(f"{needed}, which {'are' if len(missing) > 1 else 'is'} not installed")
        needs += [f"{name} {lowest} or newer ({version} is installed)" for name, version, lowest in outdated]
        super().__init__(f"{what} needs {', and '.join(needs)}: pip install 'kasatune[{extra}]'")


class WorkError(KasatuneError):
    """The inputs were valid, but the operation failed."""

    exit_status = 1


class DivergedError(WorkError):
    """The loss became NaN or infinite."""


class CheckError(WorkError, ValueError):
    """A conversion, merge or verification exceeded the error bound of its dtype.

    Also a ValueError, which PEFT's tuners raise where a safe merge gives NaN or Inf.
    """
