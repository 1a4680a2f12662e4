"""What must not be published by accident: secrets, and the folders of somebody's machine."""

import json
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

# By the marks that their makers give them, so that a digest is never taken for one.
_MARKED = {
    "a Hugging Face token": r"hf_[A-Za-z0-9]{20,}",
    "a GitHub token": r"(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,})",
    "a GitLab token": r"glpat-[\w-]{20,}",
    "an AWS key": r"(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])",
    "a Google key": r"AIza[\w-]{35}",
    "an OpenAI or Anthropic key": r"sk-[\w-]{20,}",
    "a Slack token": r"xox[abeoprs]-[\w-]{10,}",
    "a PyPI token": r"pypi-[\w-]{50,}",
    "a Stripe key": r"[rs]k_live_[A-Za-z0-9]{16,}",
    "a JSON web token": r"eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]+",
}
_MARK = {kind: re.compile(rf"(?<![A-Za-z0-9]){mark}") for kind, mark in _MARKED.items()}
_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----")
_ADDRESS = re.compile(r"(?i)\b[a-z][a-z0-9+.-]*://[^\s/:@]*:?(?P<secret>[^\s/:@]{3,})@")
_NAMED = re.compile(
    r"(?i)(?:password|passwd|secret(?:_access)?(?:_key)?|(?:api|access)_?key|auth_?token)[\"']?"
    r"\s*(?P<sign>[:=])\s*(?P<quote>[\"']?)(?P<secret>[^\"'\s,;]{6,}(?:(?<=\w)[^\"'\n]*(?=[\"']))?)"
)
_EXAMPLES = {"password", "passwd", "secret", "token", "your", "example", "changeme"}

# /a/b, C:\a, \\a\b, ~/a, file:/a: at the start of a word, so that neither km/h nor an https
# address is one.
_PATH = re.compile(
    r"(?<![\w/.~\\+$-])(?:file:/*)?(?:/(?:[\w.@+-]+/)+[\w.@+-]*|[A-Za-z]:[\\/]+[\w.-]+[^\s\"'`]*"
    r"|\\\\+[\w.-]+\\+[^\s\"'`]+|~\w*/[\w.@+/-]+)"
)
# Of every machine, or of none.
_COMMON = re.compile(r"(/path/to/|/usr/(local/)?s?bin/|/dev/|/etc/|/tmp/|~/\.cache/huggingface)")
_EMBEDDED = re.compile(r"data:[\w/+.-]+;base64,[A-Za-z0-9+/=\s]+")
_WHOLE = re.compile(r"(?P<kind>[a-z]+:)?(?P<path>/.*|[A-Za-z]:[\\/].*|\\\\.*|~.*/.*)", re.DOTALL)
_PNG = b"\x89PNG\r\n\x1a\n"


def secrets_in(text: str, own: str | None = None) -> Iterator[tuple[int, str]]:
    """(1-based line, kind) of everything that looks like a secret, or is ``own``; never itself."""
    for number, line in enumerate(_EMBEDDED.sub(_blank_lines, text).splitlines(), 1):
        if own and own in line:
            yield number, "your token"
        for kind, pattern in _MARK.items():
            if any(_is_random(found[0]) for found in pattern.finditer(line)):
                yield number, kind
        if _PRIVATE_KEY.search(line):
            yield number, "a private key"
        if any(_is_real(found["secret"]) for found in _ADDRESS.finditer(line)):
            yield number, "a password in an address"
        if any(_is_password(found) for found in _NAMED.finditer(line)):
            yield number, "a password"


def _is_random(text: str) -> bool:
    # A token has digits, and is no row of one letter that stands for one in an example.
    return any(c.isdigit() for c in text) and len(set(text)) > 4


def _is_real(text: str) -> bool:
    words = set(re.split(r"[^a-z]+", text.lower()))
    return not words & _EXAMPLES and len(set(text)) > 2


def _is_password(found: re.Match[str]) -> bool:
    # "secret: attention is all" is a sentence; a bare value behind a colon has no letters alone.
    plain_word = found["sign"] == ":" and not found["quote"] and found["secret"].isalpha()
    return _is_real(found["secret"]) and not plain_word


def paths_in(text: str) -> Iterator[tuple[int, str]]:
    """(1-based line, path) of every absolute path that says something of a machine."""
    for number, line in enumerate(_EMBEDDED.sub(_blank_lines, text).splitlines(), 1):
        for match in _PATH.finditer(line):
            if not _COMMON.match(match[0]):
                yield number, match[0]


def _blank_lines(match: re.Match[str]) -> str:
    return "\n" * match[0].count("\n")


def texts_of(file: Path) -> Iterator[str]:
    """What can be read in a file: its text, every string of a JSON file, the words in a PNG.

    Raises ValueError for what is no text, or hides it.
    """
    data = file.read_bytes()
    if file.suffix == ".png":
        yield from _png_texts(data)
        return
    text = data.decode("utf-8")
    if "\0" in text:
        raise ValueError("holds characters of no text")
    yield text
    if file.suffix == ".json":  # where a line break is written as two letters
        yield from _strings(json.loads(text))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield key
            yield from _strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part)


def _png_texts(data: bytes) -> Iterator[str]:
    if not data.startswith(_PNG):
        raise ValueError("is no PNG")
    place = len(_PNG)
    while place + 12 <= len(data):
        (length,), kind = struct.unpack_from(">I", data, place), data[place + 4 : place + 8]
        body = data[place + 8 : place + 8 + length]
        if kind in {b"zTXt", b"iTXt", b"eXIf"}:
            raise ValueError(f"holds words in a form that is not looked into ({kind.decode()})")
        if kind == b"tEXt":
            yield body.decode("latin-1").replace("\0", "\n")
        place += 12 + length
        if kind == b"IEND":
            break
    if data[place:].strip(b"\0"):
        raise ValueError("holds something behind its end")


def portable(record: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's record with every absolute path cut down to its last part."""
    return {key: _portable(value) for key, value in record.items()}


def _portable(value: Any) -> Any:
    if isinstance(value, str):
        whole = _WHOLE.fullmatch(value)  # spaces too belong to a value that is a path
        if whole and not value.startswith("//"):
            return (whole["kind"] or "") + _last_part(whole["path"])
        return _PATH.sub(lambda path: _last_part(path[0]), value)
    if isinstance(value, list):
        return [_portable(part) for part in value]
    return portable(value) if isinstance(value, dict) else value


def _last_part(path: str) -> str:
    """Nothing of a path that is short, or somebody's home."""
    kind = PureWindowsPath if "\\" in path or path[1:2] == ":" else PurePosixPath
    parts = kind(path).parts
    return "…" if len(parts) < 3 or parts[-2].lower() in {"home", "users"} else parts[-1]
