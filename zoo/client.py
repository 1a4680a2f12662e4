"""The Hub's own client, for what is sent: what its failures mean, and how it behaves here."""

import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]  # httpx's or httpx2's, as it uses
)
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    get_session,
)

from zoo.errors import UsageError
from zoo.files import disk_errors
from zoo.wire import RETRIED, TransientError, is_unreachable, retry_after

_MAIN = constants.DEFAULT_REVISION


@contextlib.contextmanager
def meaning(api: HfApi, name: str) -> Iterator[None]:
    """What a failure of the Hub's client means; the token stands in none of it."""
    try:
        with disk_errors(Path(tempfile.gettempdir())):
            yield
    except HfHubHTTPError as error:
        raise _refusal(api, name, error) from None
    except HTTPError as error:
        what = type(error).__name__
        raise TransientError(what, unreachable=is_unreachable(error)) from None
    except (json.JSONDecodeError, UnicodeError):  # of a proxy, say
        raise TransientError("an answer that is not JSON") from None
    except ValueError as error:  # of the client, which lets the Hub judge the page first
        raise UsageError(
            "the Hub refused the model's page or names",
            where=_without_token(api, " ".join(str(error).split())),
            fix="change what it names, and push again",
        ) from None
    except (RuntimeError, OSError) as error:  # of hf_xet, or of this machine
        raise TransientError(_without_token(api, str(error))) from None


def _refusal(api: HfApi, name: str, error: HfHubHTTPError) -> Exception:
    status = error.response.status_code
    said = _without_token(api, error.server_message or "")
    where = f"{name}: status {status}" + (f", {said}" if said else "")
    if status in RETRIED or status in {409, 412}:  # somebody else's commit came between
        return TransientError(f"status {status}", wait=retry_after(error.response.headers))
    if status in {401, 403}:
        return UsageError(
            "the Hub does not know the token"
            if status == 401
            else f"the token may not write to {name}",
            where=where,
            fix="run hf auth login with a token of yours that may write there",
        )
    if status == 413:
        return UsageError(
            "the Hub finds a file too large",
            where=where,
            fix="see its limits; large files beside the weights are better left out",
        )
    return UsageError(
        "the Hub refused the model", where=where, fix="change what it names, and push again"
    )


def _without_token(api: HfApi, text: str) -> str:
    line = text.strip().splitlines()[0] if text.strip() else ""
    return line.replace(str(api.token), "hf_…")[:300]


@contextlib.contextmanager
def silence_ends_after(seconds: float) -> Iterator[None]:
    """The client's sessions wait for ever; within this, no longer than that for the next byte."""
    session = get_session()
    before = session.timeout
    session.timeout = seconds  # pyright: ignore[reportAttributeAccessIssue]  # its setter takes one
    try:
        yield
    finally:
        session.timeout = before


@contextlib.contextmanager
def xet_where_it_is_served(api: HfApi, name: str) -> Iterator[None]:
    """Without this a Hub that has no Xet storage ends the client's push."""
    url = f"{api.endpoint}/api/models/{name}/xet-write-token/{_MAIN}"
    headers = {"authorization": f"Bearer {api.token}"}
    before = constants.HF_HUB_DISABLE_XET
    try:
        served = get_session().get(url, headers=headers).status_code == 200
    except HTTPError:
        served = False  # the older way is served everywhere
    constants.HF_HUB_DISABLE_XET = before or not served
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_XET = before


@contextlib.contextmanager
def progress_on_terminals() -> Iterator[None]:
    if sys.stderr.isatty() or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
