"""The one error for bad input, and the exit codes of the command line."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

__all__ = ["ExitCode", "InputError"]


class ExitCode(IntEnum):
    """Exit codes of every `anybatch` command."""

    OK = 0
    TARGET_MISSED = 1
    BAD_INPUT = 2
    DIVERGED = 3
    INTERRUPTED = 130
    TERMINATED = 143


_NOTHING = object()


class InputError(ValueError):
    """Something the user gave breaks a rule.

    The message is one line: the thing, the rule, the value, and a hint where one exists.

    Args:
        thing: what is wrong, as the user calls it (`optimizer.lr`, a file, an option).
        rule: what must hold, beginning with a verb ("must be > 0").
        value: what came; left out when it says nothing.
        hint: what to do next.

    Example:
        >>> print(InputError("optimizer.lr", "must be > 0", -0.1, hint="try 0.1"))
        optimizer.lr must be > 0, got -0.1 (try 0.1)
    """

    def __init__(self, thing: str, rule: str, value: Any = _NOTHING, *, hint: str = "") -> None:
        self.thing = thing
        self.rule = rule
        self.hint = hint
        got = "" if value is _NOTHING else f", got {_one_line(value)}"
        tail = f" ({hint})" if hint else ""
        super().__init__(f"{thing} {rule}{got}{tail}")

    def renamed(self, thing: str) -> InputError:
        """The same error about `thing`, as when the path of a key becomes known further out."""
        error = InputError(thing, self.rule, hint=self.hint)
        error.args = (thing + str(self)[len(self.thing) :] if self.thing else thing + str(self),)
        return error


def _one_line(value: Any) -> str:
    text = " ".join(str(value if isinstance(value, str) else repr(value)).split())
    return text if len(text) <= 200 else text[:197] + "..."
