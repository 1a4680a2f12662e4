"""The real Hub client, pointed at a server of the tests.  Imports little: forked runs need it."""

from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.utils._http import default_client_factory, hf_request_event_hook

_CLIENT = type(default_client_factory())


def settings(endpoint: str, cache: Path) -> dict[str, object]:
    """What the client reads from its environment on import."""
    return {
        "HF_HUB_OFFLINE": False,
        "ENDPOINT": endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(cache),
    }


def plain_client() -> Any:
    """A client of the kind that the Hub client uses, without certificates and hooks."""
    return _CLIENT(verify=False)


def quick_client() -> None:
    """Sessions without certificates: each would otherwise read all of the system's first."""
    hooks = {"request": [hf_request_event_hook]}  # refuses when offline
    huggingface_hub.set_client_factory(
        lambda: _CLIENT(verify=False, follow_redirects=True, timeout=None, event_hooks=hooks)
    )


def usual_client() -> None:
    """The client's own sessions again."""
    huggingface_hub.set_client_factory(default_client_factory)


def point_process_at(endpoint: str, cache: Path) -> None:
    """For good: in a forked process."""
    for name, value in settings(endpoint, cache).items():
        setattr(huggingface_hub.constants, name, value)
    quick_client()
