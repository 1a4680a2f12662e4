"""The front matter of a model's README: read for its listing, checked before a push."""

import json
import re
from typing import Any

import yaml
from huggingface_hub import ModelCardData

from zoo.licenses import LISTED

MOST_BYTES = 1 << 16
"""Of front matter."""

_TEXTS = ("library_name", "pipeline_tag", "license_name", "license_link", "model_name")
_LISTS = ("tags", "datasets", "metrics", "language", "base_model")
_FRONT = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)
_MOST_DEPTH = 32


def metadata(readme: str) -> dict[str, Any]:
    """The front matter, as JSON can say it; empty where there is none.  Raises ValueError."""
    block = _FRONT.match(readme[: 2 * MOST_BYTES])
    if not block:
        return {}
    if len(block[1].encode()) > MOST_BYTES:
        raise ValueError(f"the metadata is longer than {MOST_BYTES:,} bytes")
    value = _loaded(block[1])
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError("the metadata is not a mapping of names to values")
    try:
        text = json.dumps(value, default=str, allow_nan=False, ensure_ascii=False)
        text.encode()  # YAML can spell half a character, which no answer can carry
        return json.loads(text)
    except TypeError:
        raise ValueError("the metadata has a key that is no text") from None


def _loaded(text: str) -> Any:
    try:
        _require_plain(text)
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"the metadata is not YAML: {' '.join(str(error).split())}") from None
    except ValueError:
        raise
    except Exception as error:  # a value that is not what its tag says: KeyError, IndexError, …
        raise ValueError(f"the metadata has a value that cannot be read: {error!r}") from None


def _require_plain(text: str) -> None:
    # A few lines of aliases can stand for more than any memory holds, and some thousands of
    # brackets take the parser minutes.
    depth = 0
    for event in yaml.parse(text):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("the metadata uses YAML aliases")
        if depth > _MOST_DEPTH:
            raise ValueError("the metadata is nested too deeply")


def check(readme: str) -> tuple[list[str], list[str]]:
    """(errors, warnings) about a README's front matter."""
    try:
        values = metadata(readme)
    except ValueError as error:
        return [str(error)], []
    if not values:
        return [], ["empty or missing yaml metadata in repo card"]
    errors = [f'"{key}" must be a text' for key in _TEXTS if not _is_text(values.get(key, ""))]
    errors += [
        f'"{key}" must be a text or a list of texts'
        for key in _LISTS
        if not all(map(_is_text, _as_list(values.get(key, []))))
    ]
    errors += _license_errors(values)
    try:
        ModelCardData(**values)  # the client's own reading of model-index
    except Exception as error:  # it lets through whatever the metadata makes it stumble on
        errors.append(f'"model-index" cannot be read: {error}')
    return errors, [] if "license" in values else ["no license is stated"]


def _license_errors(values: dict[str, Any]) -> list[str]:
    named = _as_list(values.get("license", []))
    unknown = [value for value in named if not _is_text(value) or value not in LISTED]
    if unknown:
        return [f'"license" must be one of the identifiers of the Hub, not {unknown[0]!r}']
    if "other" in named and not values.get("license_name"):
        return ['"license_name" must say which, where "license" is other']
    return []


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def text_of(values: dict[str, Any], key: str) -> str | None:
    """A value, where it is the text that it should be."""
    value = values.get(key)
    return value if isinstance(value, str) else None


def tags(values: dict[str, Any]) -> list[str]:
    """What the Hub finds a model by."""
    found = [*_texts(values, "library_name"), *_texts(values, "tags")]
    kinds = {"datasets": "dataset", "base_model": "base_model", "license": "license"}
    for key, kind in kinds.items():
        found += [f"{kind}:{value}" for value in _texts(values, key)]
    return list(dict.fromkeys(found))


def _texts(values: dict[str, Any], key: str) -> list[str]:
    return [value for value in _as_list(values.get(key)) if value and _is_text(value)]
