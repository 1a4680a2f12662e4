"""The result files of ``zoo eval``, as far as a model's own scores are concerned."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from zoo.card import Score

_MOST_BYTES = 10_000_000
_KEYS = [field.name for field in fields(Score)]
_SCORE = TypeAdapter(Score)


def scores_of(
    digest: str, results: Path, known: Iterable[Score] = ()
) -> tuple[list[Score], list[str]]:
    """What was measured of the model with this digest, and what could not be read.

    results: the folder of the result files; there need be none.  known: what its record says
    already, which a file of the same evaluation replaces.
    """
    scores = {_key(score): score for score in known}
    skipped = []
    files = results.glob("*.json") if results.is_dir() else []
    for file in sorted(files, key=lambda file: (file.stat().st_mtime_ns, file.name)):
        try:
            record = _read(file)
        except (OSError, ValueError, RecursionError) as error:
            skipped.append(f"{file} is no result: {str(error).splitlines()[0]}")
            continue
        if record.get("model_digest") != digest:
            continue
        try:
            # By way of JSON: to a strict check a mapping is no instance.
            stated = {key: record[key] for key in _KEYS if key in record}
            score = _SCORE.validate_json(json.dumps(stated))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            told = f"{where}: {first['msg']}; of another version, perhaps: run zoo eval again"
            skipped.append(f"{file} is no result: {told}")
            continue
        scores[_key(score)] = score
    return sorted(scores.values(), key=_key), skipped


def _read(file: Path) -> dict[str, Any]:
    if file.stat().st_size > _MOST_BYTES:
        raise ValueError(f"over {_MOST_BYTES:,} bytes")
    record = json.loads(file.read_bytes(), parse_constant=_no_number)
    return record if isinstance(record, dict) else {}


def _no_number(text: str) -> Iterator[None]:
    raise ValueError(f"{text} is not JSON")


def _key(score: Score) -> str:
    kind = [score.protocol, score.metric, score.data, score.data_fingerprint, score.dtype]
    return json.dumps([*kind, score.settings, score.transform], sort_keys=True)
