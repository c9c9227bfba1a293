"""The exceptions of kasatune, as a tree; each carries the exit status that the command line gives it.

KasatuneError
├── InputError (2)            the user's input was wrong; a ValueError too
│   ├── RecipeError           a recipe: every fault of it at once
│   ├── DataError             a data set
│   ├── ModelError            a base model, or a layer of it that cannot be adapted
│   ├── AdapterError          adapter files
│   ├── OutputError           an output path that is occupied or cannot be written
│   └── MissingExtraError     an optional part that is not installed
└── WorkError (1)             the input was right and the work failed all the same
    ├── DivergedError         the loss became NaN or infinite
    └── CheckError            a conversion or verification did not hold
"""

from __future__ import annotations

from collections.abc import Sequence

from kasatune.redaction import presentable

_MOST_FAULTS = 20


class KasatuneError(Exception):
    """Base of every exception that kasatune raises on purpose; its message holds no secret and no control character."""

    exit_status = 1

    def __init__(self, *args: object) -> None:
        super().__init__(*(presentable(part) if isinstance(part, str) else part for part in args))


class InputError(KasatuneError, ValueError):
    """The input was wrong: the message names the value received, the limit broken and the remedy."""

    exit_status = 2


class RecipeError(InputError):
    """A recipe has faults.

    Args:
        faults: one sentence for each fault, as "section.key: value, limit, remedy".
        source: where the recipe came from, for the first line of the message.
    """

    def __init__(self, faults: Sequence[str], source: str = "recipe") -> None:
        self.faults = tuple(presentable(fault) for fault in faults)
        self.source = source
        noun = "fault" if len(self.faults) == 1 else "faults"
        lines = "\n".join(f"  - {fault}" for fault in self.faults[:_MOST_FAULTS])
        more = f"\n  and {len(self.faults) - _MOST_FAULTS:,} more" if len(self.faults) > _MOST_FAULTS else ""
        super().__init__(f"{source}: {len(self.faults):,} {noun}\n{lines}{more}")


class DataError(InputError):
    """A data set is missing, unreadable or inconsistent."""


class ModelError(InputError):
    """A base model is missing or unsuitable, or a layer of it cannot be adapted."""


class AdapterError(InputError):
    """Adapter files are missing, damaged, or belong to another base."""


class OutputError(InputError):
    """An output path is occupied or cannot be written."""


class MissingExtraError(InputError):
    """An optional part is not installed.

    Args:
        what: what needs it, in words.
        extra: the extra of kasatune that brings it.
    """

    def __init__(self, what: str, extra: str) -> None:
        self.extra = extra
        super().__init__(f"{what} needs an optional part that is not installed: pip install 'kasatune[{extra}]'")


class WorkError(KasatuneError):
    """The input was right and the work failed all the same."""

    exit_status = 1


class DivergedError(WorkError):
    """The loss became NaN or infinite."""


class CheckError(WorkError):
    """A conversion or verification did not hold within the bound of its dtype."""
