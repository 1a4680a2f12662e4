"""A small model to publish, its push by the real client, and a Hub of ours to take it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from models import TEACHER
from ownhub import CANARY, OwnHub
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from zoo.card import Card
from zoo.errors import ZooError
from zoo.folder import save_model
from zoo.package import packed
from zoo.push import Pushed, push
from zoo.terms import Terms
from zoo.vit import build_vit
from zoo.wire import Patience

NAME = "me/tiny"
FAST = Patience(attempts=3, first_wait_seconds=0.001, stall_seconds=1, total_seconds=5)


def make(folder: Path, *, seed: int = 0) -> Path:
    card = Card(
        name="tiny",
        method="mae",
        heads=TEACHER.heads,
        last_trained_block=TEACHER.depth,
        licenses={"code": "Apache-2.0", "weights": "mit"},
    )
    save_model(folder, TEACHER, build_vit(TEACHER, seed=seed).state_dict(), card)
    return folder


def publish(folder: Path, name: str = NAME, **options: Any) -> Pushed:
    with packed(str(folder), Terms(repository=name)) as package:
        return push(package, **{"patience": FAST, **options})


def failure(folder: Path, kind: type[ZooError], **options: Any) -> ZooError:
    with pytest.raises(kind) as caught:
        publish(folder, **options)
    assert CANARY not in str(caught.value)
    return caught.value


def posts(hub: OwnHub, part: str) -> int:
    return sum(method == "POST" and part in path for method, path in hub.requests)


def refusing(part: str, status: int, times: int = 1_000_000, **headers: str) -> Callable:
    """Answers with a status, the first so many times that an address is asked for."""
    left = [times]

    def answer(request: Request) -> Response | None:
        if part not in request.url.path or request.method == "HEAD" or not left[0]:
            return None
        left[0] -= 1
        return JSONResponse({"error": "no"}, status_code=status, headers=headers)

    return answer
