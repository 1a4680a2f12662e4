"""Every error a user can meet: one line what, one line where, one line what to do.

The exit code is part of the error, so that a scheduler can tell a bad disk from a bad recipe.
"""

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of every verb."""

    DONE = 0
    BUG = 1
    USAGE = 2
    DATA = 3
    INTEGRITY = 4
    NETWORK = 5
    DISK = 6
    DIVERGED = 7
    LOST_RANK = 8
    PREEMPTED = 75
    INTERRUPTED = 130
    TERMINATED = 143


class ZooError(Exception):
    """An error with a place and a remedy.

    what: the fact, one line. where: file, key, rank or step. fix: what the reader can do now.
    """

    code: Exit = Exit.BUG

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what, self.where, self.fix = _shown(what), _shown(where), _shown(fix)

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.fix:
            lines.append(f"  to do: {self.fix}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple:
        # A loader worker sends its error to the training process: keep all three lines, and the
        # code, which an error read from a file has for itself.
        return _rebuild, (type(self), self.what, self.where, self.fix, self.code)

    def as_dict(self) -> dict[str, str | int]:
        """The same as an object, for ``--json`` and ``exit.json``."""
        return {"code": int(self.code), "error": self.what, "where": self.where, "fix": self.fix}


def _shown(text: str) -> str:
    """Names may come from others' archives: what a terminal would obey is written out."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" or _raw(c) else ascii(c)[1:-1] for c in text)


def _raw(c: str) -> bool:
    """A byte of a name that is no UTF-8, which the streams write out by themselves."""
    return "\udc80" <= c <= "\udcff"


def _rebuild(kind: type[ZooError], what: str, where: str, fix: str, code: Exit) -> ZooError:
    error = kind(what, where=where, fix=fix)
    error.code = code
    return error


def unexpected(error: BaseException) -> ZooError:
    """What is told of an error that nobody foresaw."""
    first = f"{type(error).__name__}: {error}".splitlines()[0]
    return ZooError(
        f"unexpected: {first}", where="a bug in tinyzoo", fix="repeat with --debug and report it"
    )


class UsageError(ZooError):
    """A wrong option, recipe or combination of them."""

    code = Exit.USAGE


class DataError(ZooError):
    """The data set is missing, empty, damaged or not what it was."""

    code = Exit.DATA


class IntegrityError(ZooError):
    """A file is not what its digest or its model says it is, or was refused for safety."""

    code = Exit.INTEGRITY


class NetworkError(ZooError):
    """The Hub could not be reached, retries spent."""

    code = Exit.NETWORK


class DiskError(ZooError):
    """No space left, a quota, or a place that cannot be written."""

    code = Exit.DISK


class DivergedError(ZooError):
    """A loss or a gradient is not finite."""

    code = Exit.DIVERGED


class LostRankError(ZooError):
    """Another rank died, or stopped answering."""

    code = Exit.LOST_RANK


class PreemptedError(ZooError):
    """Stopped by a signal with the state saved: the same command continues."""

    code = Exit.PREEMPTED
