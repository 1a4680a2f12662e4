"""The way to the Hub: whether it answers, and how files come from there."""

import os
import threading
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

from huggingface_hub import constants
from huggingface_hub.utils import get_session

from zoo.doctor.check import BAD, NOTE, OK, WARN, Check, printable
from zoo.doctor.installed import Installed, first
from zoo.wire import LOOPBACK

LIMIT_SECONDS = 3.0
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def endpoint_checks(*, offline: bool = False, limit_seconds: float = LIMIT_SECONDS) -> list[Check]:
    """Whether the Hub answers.  A request without a token, unless something says offline."""
    endpoint = constants.ENDPOINT
    place, fault = _place(endpoint)
    given = " (HF_ENDPOINT)" if os.environ.get("HF_ENDPOINT") else ""
    if fault:
        return [Check("endpoint", BAD, f"{place}{given}: {fault}", "unset HF_ENDPOINT")]
    set_ = next((name for name in _OFFLINE if os.environ.get(name)), "HF_HUB_OFFLINE")
    if constants.is_offline_mode():
        what = f"{place}{given}: not asked; {set_} is set, and nothing is fetched"
        return [Check("endpoint", NOTE, what, f"unset {set_}")]
    if offline:
        return [Check("endpoint", NOTE, f"{place}{given}: not asked (--offline)")]
    answers: list[tuple[int, float, str]] = []
    faults = [f"no answer in {limit_seconds:g} s"]

    def ask() -> None:
        try:
            answers.append(_ask(endpoint, limit_seconds))
        except Exception as error:  # whatever it is: this is a thread, and the report goes on
            faults.insert(0, type(error).__name__)

    # A look-up of the name cannot be given a time limit; a thread that is not waited for can.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(limit_seconds + 2)
    if not answers:
        what = f"{place}{given} cannot be reached: {faults[0]}"
        return [Check("endpoint", WARN, what, "check the network; zoo pull --offline works")]
    status, seconds, elsewhere = answers[0]
    what = f"{place}{given} answers in {1000 * seconds:.0f} ms"
    if elsewhere:
        what += (
            f" that it is elsewhere, on {printable(elsewhere, 60)}: a network that wants a log-in?"
        )
        return [Check("endpoint", WARN, what, "open a page in a browser first")]
    if status >= 500 or status == 407:
        what += f" with status {status}"
        return [Check("endpoint", WARN, what, "try again later, or check HF_ENDPOINT and proxies")]
    return [Check("endpoint", OK, what)]


def _ask(endpoint: str, limit_seconds: float) -> tuple[int, float, str]:
    """Status, seconds, and the host that it sends to if that is another one."""
    session = get_session()
    began = time.monotonic()
    answer = session.head(endpoint, timeout=limit_seconds, follow_redirects=False)
    seconds = time.monotonic() - began
    host = urlsplit(answer.headers.get("location", "")).hostname
    return answer.status_code, seconds, host if host and host != urlsplit(endpoint).hostname else ""


def _place(endpoint: str) -> tuple[str, str]:
    """The address without a password that may stand in it, and what is wrong with it."""
    try:
        parts = urlsplit(endpoint)
        scheme, host, port = parts.scheme, parts.hostname or "", parts.port
    except ValueError:
        return "an address that is none", "zoo pull refuses it"
    place = printable(f"{scheme}://{host}" + (f":{port}" if port else "") + parts.path, 120)
    if scheme == "https" and host:
        return place, ""
    if scheme == "http" and host:
        return place, "" if host in LOOPBACK else "plain http off this machine: zoo pull refuses it"
    return place, "zoo pull takes https only"


def transfer_checks(installed: Installed) -> Iterator[Check]:
    """Xet, which zoo pull does without."""
    xet = first(installed, "hf-xet")
    by_http = "zoo pull takes files over plain HTTPS"
    if xet is None:
        yield Check("xet", OK, f"not installed; no matter: {by_http}")
    elif constants.HF_HUB_DISABLE_XET:
        yield Check("xet", OK, f"hf-xet {xet.version}, off (HF_HUB_DISABLE_XET); {by_http}")
    else:
        yield Check("xet", OK, f"hf-xet {xet.version}, for the Hub's own client; {by_http}")
