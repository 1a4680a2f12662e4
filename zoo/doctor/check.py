"""What one look found, and the report of all of them."""

import textwrap
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

WIDTH = 100
"""Columns of a terminal."""


class State(StrEnum):
    """From nothing to say to must be mended; the order is that of badness."""

    OK = "ok"
    NOTE = "note"
    WARN = "warn"
    BAD = "bad"


OK, NOTE, WARN, BAD = State.OK, State.NOTE, State.WARN, State.BAD


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report.  fix: a command where there is one; empty where all is well."""

    name: str
    state: State
    what: str
    fix: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Everything that was looked at."""

    checks: tuple[Check, ...]

    @property
    def worst(self) -> State:
        order = list(State)
        return max((check.state for check in self.checks), key=order.index, default=OK)

    def as_dict(self) -> dict[str, Any]:
        checks = [
            {"name": c.name, "state": str(c.state), "what": c.what, "fix": c.fix}
            for c in self.checks
        ]
        return {"checks": checks, "worst": str(self.worst)}

    def text(self) -> str:
        """A table; only what is in the checks themselves can be other than ASCII."""
        names = max((len(check.name) for check in self.checks), default=0)
        rows = [line for check in self.checks for line in _lines(check, names)]
        count = Counter(check.state for check in self.checks)
        found = ", ".join(f"{count[state]} {state}" for state in State if count[state])
        return "\n".join([*rows, "", f"{len(self.checks)} checks: {found}"])


def printable(text: str, most: int = 400) -> str:
    """Text of unknown origin as it can stand in a line of a terminal."""
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return shown if len(shown) <= most else shown[: most - 3] + "..."


def listed(words: Iterable[str], most: int = 5) -> str:
    """The first few of a list, and how many more there are."""
    every = list(words)
    rest = [f"{len(every) - most} more"] if len(every) > most else []
    return ", ".join(every[:most] + rest)


def _lines(check: Check, names: int) -> list[str]:
    head = f"{check.state:<4}  {check.name:<{names}}  "
    indent = " " * len(head)
    return [
        *_wrapped(check.what, head, indent),
        *(_wrapped(f"fix: {check.fix}", indent, indent + " " * 5) if check.fix else ()),
    ]


def _wrapped(text: str, first: str, rest: str) -> list[str]:
    # A path or an option is never torn: it is there to be copied.
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )
