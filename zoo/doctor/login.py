"""The Hub's token: whether there is one, where from, and who can read it.  Never what it is."""

import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from huggingface_hub import constants

from zoo.doctor.check import BAD, NOTE, OK, WARN, Check

_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def token_checks(environ: Mapping[str, str]) -> Iterator[Check]:
    """Where the token comes from and who can read it.  Never what it is."""
    file = Path(constants.HF_TOKEN_PATH)
    in_file, fault = _read(file)
    source, token = "", ""
    if environ.get("HF_OIDC_RESOURCE"):
        source = "exchanged for the identity of this CI job (HF_OIDC_RESOURCE)"
    elif name := next((name for name in _TOKENS if _clean(environ.get(name))), ""):
        source, token = f"from {name}", _clean(environ[name])
        source += f", not the one in {file}" if in_file else ""
    elif in_file:
        source, token = f"from {file}", in_file
    if fault:
        what = f"{file} cannot be read: {fault}"
        state = WARN if source else BAD  # it is read before the first request of any pull
        yield Check("token", state, what, f"remove {file}, then: hf auth login")
    if token and not (token.isascii() and token.isprintable() and " " not in token):
        what = f"{source}: it has characters that no token has"
        yield Check("token", BAD, what, "hf auth login")
    elif source:
        unsent = constants.HF_HUB_DISABLE_IMPLICIT_TOKEN
        hint = "; not sent: HF_HUB_DISABLE_IMPLICIT_TOKEN is set" if unsent else ""
        yield Check("token", NOTE if unsent else OK, f"present, {source}{hint}")
    elif not fault:
        yield Check("token", OK, "none; public models need none")
    for secret in (file, Path(constants.HF_STORED_TOKENS_PATH)):
        yield from _secrecy(secret)


def _read(file: Path) -> tuple[str, str]:
    """What a token file holds, and why it cannot be read."""
    try:
        return _clean(file.read_text()), ""
    except (FileNotFoundError, NotADirectoryError):
        return "", ""
    except OSError as error:
        return "", error.strerror or type(error).__name__
    except ValueError:
        return "", "it is not text"


def _clean(token: str | None) -> str:
    return (token or "").replace("\r", "").replace("\n", "").strip()  # as the client does


def _secrecy(file: Path) -> Iterator[Check]:
    try:
        mode = file.stat().st_mode
    except OSError:
        return
    if os.name == "posix" and mode & 0o077 and file.is_file():
        what = f"{file} has mode {mode & 0o777:o}: other users may read it"
        yield Check("token", WARN, what, f"chmod 600 {shlex.quote(str(file))}")
