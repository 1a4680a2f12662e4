"""What a user has set: the namespace of our own models, and where that is kept.

``config.toml`` and ``catalog.toml`` stand in one folder, the system's for settings.
"""

import os
import re
import tomllib
from pathlib import Path
from typing import Any

from platformdirs import user_config_path

from zoo.errors import UsageError
from zoo.files import is_plain_name

NAMESPACE = "ZOO_NAMESPACE"
_KEYS = ("namespace",)
_MOST_BYTES = 1_000_000
_RUNS = re.compile(r"--|\.\.")


def config_folder() -> Path:
    """Where the user's settings and the user's catalog are; it need not exist."""
    return user_config_path("tinyzoo")


def namespace() -> str | None:
    """The organisation or user on the Hub that publishes our models for this user, if set.

    ``ZOO_NAMESPACE``, or ``namespace`` in ``config.toml``; the first wins, and empty is not set.
    Raises UsageError for one that the Hub cannot have, and for a file that is broken.
    """
    if given := os.environ.get(NAMESPACE, ""):
        return _checked(given, NAMESPACE)
    file = config_folder() / "config.toml"
    settings = _settings(file)
    for key in settings:
        if key not in _KEYS:
            raise UsageError(
                f"unknown setting {key[:80]!r}",
                where=f"{file}: {key[:80]}",
                fix=f"there is: {', '.join(_KEYS)}",
            )
    value = settings.get("namespace", "")
    return _checked(value, f"{file}: namespace") if value != "" else None


def is_namespace(name: str) -> bool:
    """Whether the Hub can have an organisation or a user of this name."""
    return is_plain_name(name) and name[-1].isalnum() and not _RUNS.search(name)


def is_repository(text: str) -> bool:
    """Whether this is ``org/name`` as the Hub can have it."""
    owner, _, name = text.partition("/")
    return is_namespace(owner) and is_namespace(name) and not name.endswith(".git")


def _checked(value: object, where: str) -> str:
    if isinstance(value, str) and is_namespace(value):
        return value
    raise UsageError(
        f"not the name of an organisation or a user on the Hub: {str(value)[:80]!r}",
        where=where,
        fix="give the part before the slash of ORG/NAME",
    )


def _settings(file: Path) -> dict[str, Any]:
    try:
        return read_toml(file, _MOST_BYTES) or {}
    except ValueError as error:
        raise UsageError(
            f"the settings cannot be read: {error}",
            where=str(file),
            fix="correct the file, or remove it",
        ) from error


def read_toml(file: Path, most_bytes: int) -> dict[str, Any] | None:
    """What a file of the user's says; None where there is none.

    A home that is no folder, or that this user may not look into, holds none.  Raises ValueError,
    one line, for a file that is there and is not readable as TOML.
    """
    try:
        with file.open("rb") as opened:
            data = opened.read(most_bytes + 1)
        if len(data) > most_bytes:
            raise ValueError(f"over {most_bytes:,} bytes")
        return tomllib.loads(data.decode())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, PermissionError) and not os.access(file.parent, os.X_OK):
            return None
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise ValueError(f"not readable as TOML: {reason}") from error
