"""What differs between two starts of one run: refused, or allowed by name and written down."""

import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from zoo.card import ChangeRecord
from zoo.errors import IntegrityError, UsageError
from zoo.files import atomic_json

Changed = dict[str, tuple[Any, Any]]
"""By field, its value before and after."""

FIXED = ("method", "training.optim.algorithm")
"""Another one reads nothing of what a checkpoint holds."""
_FOLLOWS = {"images": "data_fingerprint"}
"""Fields that change only with another one: to allow that one is enough."""
_ABSENT = "absent"


def refuse_changes(
    place: Path,
    earlier: Mapping[str, Any],
    now: Mapping[str, Any],
    allow: Collection[str] | None = None,
) -> Changed:
    """Raise UsageError that names what differs between two records, but for what is allowed.

    allow: names of fields; None where nobody can be asked for them.  Returns what was allowed.
    """
    earlier, now = _flat(earlier), _flat(now)
    changed = {
        field: (earlier.get(field, _ABSENT), now.get(field, _ABSENT))
        for field in sorted(earlier.keys() | now.keys())
        if earlier.get(field, _ABSENT) != now.get(field, _ABSENT)
    }
    allowed = {*(allow or ())} - {*FIXED}
    refused = [name for name in changed if not {name, _FOLLOWS.get(name)} & allowed]
    if not refused:
        return changed
    ways = ["give the same recipe, data and ranks to continue"]
    names = [name for name in refused if _FOLLOWS.get(name) not in refused]
    if allow is not None and not {*names} & {*FIXED}:
        ways.append("allow it: " + " ".join(f"--allow-change {name}" for name in names))
    raise UsageError(
        "this folder's run began otherwise: "
        + "; ".join(f"{field}: {_arrow(changed[field])}" for field in refused),
        where=str(place),
        fix=", or ".join([*ways, "choose another folder with --out"]),
    )


def _arrow(values: tuple[Any, Any]) -> str:
    return f"{values[0]!r} → {values[1]!r}"


def _flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested records as ``key.path``: a part of one can be allowed without the rest."""
    flat: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def require_known(allow: Iterable[str], *records: Mapping[str, Any]) -> None:
    """Raise UsageError for a name to allow that no record has."""
    known = sorted({field for record in records for field in _flat(record)} - {*FIXED})
    for name in allow:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            raise UsageError(
                f"no field that could change is called {name!r}"
                + (f" (did you mean {close[0]!r}?)" if close else ""),
                where="--allow-change",
                fix=f"choose among {', '.join(known)}",
            )


def told(changed: Changed) -> list[str]:
    """A line each."""
    return [f"allowed to change here: {f}: {_arrow(values)}" for f, values in changed.items()]


def keep_changes(place: Path, changed: Changed, step: int) -> bool:
    """Add to the run's list of changes; whether any was new to it.

    A start that was killed before it saved anything meets, and tells, the same changes again.
    Raises DiskError, IntegrityError.
    """
    kept = read_changes(place)
    records = [
        ChangeRecord(step=step, field=field, before=before, after=after)
        for field, (before, after) in changed.items()
    ]
    new = [record for record in records if record not in kept]
    if new:
        atomic_json(place, [asdict(record) for record in [*kept, *new]])
    return bool(new)


def read_changes(place: Path) -> list[ChangeRecord]:
    """A run's list of changes, empty where there was none.  Raises IntegrityError."""
    if not place.exists():
        return []
    try:
        return TypeAdapter(list[ChangeRecord]).validate_json(place.read_bytes(), strict=True)
    except (OSError, ValidationError) as error:
        raise IntegrityError(
            "the list of what was allowed to change in this run cannot be read",
            where=str(place),
            fix="restore it from a backup, or start anew in another folder (--out)",
        ) from error
