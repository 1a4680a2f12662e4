"""What must not be published by accident: secrets, and the folders of somebody's machine."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

# By the marks that their makers give them, so that a digest is never taken for one.
_SECRETS = {
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{20,}",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,})",
    "a GitLab token": r"\bglpat-[\w-]{20,}",
    "an AWS key": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a Google key": r"\bAIza[\w-]{35}",
    "an OpenAI or Anthropic key": r"\bsk-[\w-]{20,}",
    "a Slack token": r"\bxox[abeoprs]-[\w-]{10,}",
    "a PyPI token": r"\bpypi-[\w-]{50,}",
    "a Stripe key": r"\b[rs]k_live_[A-Za-z0-9]{16,}",
    "a JSON web token": r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]+",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a password in an address": r"\b[a-z][a-z0-9+.-]*://[^\s/:@]+:[^\s/@]+@",
    "a password": r"(?i)\b(?:password|passwd|secret|api_?key|auth_?token)[\"']?\s*[:=]\s*"
    r"(?:\"[^\"]{6,}\"|'[^']{6,}'|[^\s\"',;]{8,})",
}
_SECRET = {kind: re.compile(pattern) for kind, pattern in _SECRETS.items()}

# /a/b, C:\a, \\a\b, ~/a, file:/a: at the start of a word, so that neither km/h nor an https
# address is one.
_PATH = re.compile(
    r"(?<![\w/.~\\-])(?:file:/*)?(?:/(?:[\w.@+-]+/)+[\w.@+-]*|[A-Za-z]:[\\/]+[\w.-]+[^\s\"'`]*"
    r"|\\\\+[\w.-]+\\+[^\s\"'`]+|~\w*/[\w.@+/-]+)"
)


def secrets_in(text: str, own: str | None = None) -> Iterator[tuple[int, str]]:
    """(1-based line, kind) of everything that looks like a secret, or is ``own``; never itself."""
    for number, line in enumerate(text.splitlines(), 1):
        if own and own in line:
            yield number, "your token"
        for kind, pattern in _SECRET.items():
            if pattern.search(line):
                yield number, kind


def paths_in(text: str) -> Iterator[tuple[int, str]]:
    """(1-based line, path) of every absolute path."""
    for number, line in enumerate(text.splitlines(), 1):
        for match in _PATH.finditer(line):
            yield number, match[0]


def portable(record: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's record with every absolute path cut down to its last part."""
    return {key: _portable(value) for key, value in record.items()}


def _portable(value: Any) -> Any:
    if isinstance(value, str):
        return _PATH.sub(_last_part, value)
    if isinstance(value, list):
        return [_portable(part) for part in value]
    return portable(value) if isinstance(value, dict) else value


def _last_part(path: re.Match[str]) -> str:
    return re.split(r"[\\/]+", path[0].rstrip("\\/"))[-1]
