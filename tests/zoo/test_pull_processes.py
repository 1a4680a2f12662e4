"""Pulls that are killed, that meet, and that find no room: in processes of their own."""

import fcntl
import hashlib
import os
import random
import signal
import stat
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import huggingface_hub
import pytest
from fakehub import Answer, Asked, FakeHub
from hubclient import point_process_at
from pulls import (
    FILES,
    REPOSITORY,
    WEIGHTS,
    assert_complete,
    assert_nothing_wrong,
    fetch,
    gets,
    litter,
    published,
)
from runs import Run, run

from zoo.errors import Exit, UsageError

KILLS = int(os.environ.get("TINYZOO_KILLS", "20"))
BIG = {**FILES, WEIGHTS: hashlib.shake_256(b"big").digest(6_000_000)}
IN_FLIGHT = 1 << 20
"""Bytes that a killed pull had not yet read, or not yet written, at the most."""


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[FakeHub]:
    with published(monkeypatch, cache) as hub:
        hub.add(REPOSITORY, dict(BIG))
        yield hub


def at(hub: FakeHub, cache: Path) -> Callable[[], None]:
    """What makes a forked process use this server and cache."""
    return partial(point_process_at, hub.endpoint, cache)


def paced(asked: Asked, answer: Answer, *, pace_seconds: float = 0.01) -> Answer:
    """About a second for the weights."""
    if asked.name != WEIGHTS:
        return answer
    return replace(answer, block=1 << 16, pace_seconds=pace_seconds)


def pull_killed(hub: FakeHub, cache: Path, rng: random.Random) -> None:
    """kill -9 once the weights are on their way, at a random moment from then."""
    before = hub.sent[WEIGHTS]
    started = Run(["pull", REPOSITORY], prepare=at(hub, cache))
    deadline = time.monotonic() + 30
    while hub.sent[WEIGHTS] == before and started.running and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.2))
    started.processes[0].kill()
    started.wait()


def kill_and_finish(hub: FakeHub, cache: Path, *, kills: int, seed: int = 0) -> None:
    hub.twist = paced
    rng = random.Random(seed)
    for _ in range(kills):
        pull_killed(hub, cache, rng)
        assert_nothing_wrong(cache, BIG)
        assert len(litter(cache)) <= len(FILES)  # it does not grow
    hub.twist = lambda asked, answer: answer
    assert run(["pull", REPOSITORY], prepare=at(hub, cache)) == [0]
    assert_complete(fetch(offline=True), cache, BIG)
    continued = [a for a in hub.asked if a.name == WEIGHTS and "range" in a.headers]
    assert continued
    assert hub.sent[WEIGHTS] <= len(BIG[WEIGHTS]) + kills * IN_FLIGHT


def test_a_killed_pull_is_continued(hub: FakeHub, cache: Path) -> None:
    kill_and_finish(hub, cache, kills=3)


def test_an_interrupted_pull_keeps_what_it_has(hub: FakeHub, cache: Path) -> None:
    # Ten seconds for the rest: however late the signal comes on a busy machine, it comes in time.
    hub.twist = partial(paced, pace_seconds=0.15)
    started = Run(["pull", REPOSITORY], prepare=at(hub, cache))
    while hub.sent[WEIGHTS] < 1_000_000 and started.running:
        time.sleep(0.002)
    hub.twist = lambda asked, answer: answer
    os.kill(started.processes[0].pid or 0, signal.SIGINT)
    assert started.wait() == [Exit.INTERRUPTED]
    assert hashlib.sha256(BIG[WEIGHTS]).hexdigest() + ".zoo.incomplete" in litter(cache)
    assert_complete(fetch(), cache, BIG)
    assert hub.sent[WEIGHTS] <= len(BIG[WEIGHTS]) + IN_FLIGHT


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(max(1, KILLS // 5)))
def test_many_killed_pulls(hub: FakeHub, cache: Path, trial: int) -> None:
    kill_and_finish(hub, cache, kills=5, seed=trial)


def test_sixteen_pulls_at_once_make_one_copy(hub: FakeHub, cache: Path) -> None:
    started = [Run(["pull", REPOSITORY], prepare=at(hub, cache)) for _ in range(16)]
    assert [code for each in started for code in each.wait()] == [0] * 16
    assert sorted(gets(hub)) == sorted(BIG)
    assert_complete(fetch(offline=True), cache, BIG)
    assert len(list(cache.glob("*/blobs/*"))) == len(BIG)


def test_pulls_at_once_are_right_where_locks_do_not_hold(
    hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    hub.twist = paced
    with ThreadPoolExecutor(4) as pool:
        pulled = list(pool.map(lambda _: fetch(), range(4)))
    for each in pulled:
        assert_complete(each, cache, BIG)


def test_a_full_disk(hub: FakeHub, cache: Path) -> None:
    prepare = at(hub, cache)
    assert run(["pull", REPOSITORY], file_limit=2_000_000, prepare=prepare) == [Exit.DISK]
    assert_nothing_wrong(cache, BIG)
    sha256 = hashlib.sha256(BIG[WEIGHTS]).hexdigest()
    assert not [name for name in litter(cache) if sha256 in name]  # it gives the room back
    assert run(["pull", REPOSITORY], prepare=prepare) == [0]
    assert_complete(fetch(offline=True), cache, BIG)


def nobody(endpoint: str, cache: Path) -> None:
    """Become a user who may read and not write."""
    point_process_at(endpoint, cache)
    huggingface_hub.constants.HF_TOKEN_PATH = str(cache.parent / "none")  # root's is root's
    huggingface_hub.get_session().get(endpoint)  # imports what root alone may read
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)


@pytest.fixture
def open_cache(tmp_path: Path) -> Path:
    """A cache that other users can reach."""
    for folder in (tmp_path, *tmp_path.parents):
        mode = folder.stat().st_mode
        if not mode & stat.S_IXOTH:
            folder.chmod(mode | 0o055)
    return tmp_path / "cache"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_cache_that_cannot_be_written(hub: FakeHub, open_cache: Path) -> None:
    prepare = partial(nobody, hub.endpoint, open_cache)
    open_cache.mkdir()
    assert run(["pull", REPOSITORY], prepare=prepare) == [Exit.DISK]
    assert litter(open_cache) == []
    fetch()
    before = sorted(gets(hub))
    assert run(["pull", REPOSITORY], prepare=prepare) == [0]
    assert run(["pull", REPOSITORY, "--offline"], prepare=prepare) == [0]
    assert run(["verify", REPOSITORY], prepare=prepare) == [0]
    assert sorted(gets(hub)) == before


@pytest.mark.parametrize("make", [Path.mkdir, lambda file: file.write_bytes(b"canary\xff")])
def test_a_token_file_that_is_none_is_named(
    hub: FakeHub, token_file: Path, make: Callable[[Path], object]
) -> None:
    make(token_file)
    with pytest.raises(
        UsageError, match=r"token cannot be read: (Is a directory|it is not text)"
    ) as e:
        fetch()
    assert e.value.where == str(token_file)
    assert e.value.fix
    assert "canary" not in str(e.value)
    assert not hub.requests


def without_right_to_token(endpoint: str, cache: Path, token: str) -> None:
    """Become a user whose token file is another's."""
    nobody(endpoint, cache)
    huggingface_hub.constants.HF_TOKEN_PATH = token


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_token_of_another_user_is_no_matter_of_disks(
    hub: FakeHub, open_cache: Path, token_file: Path
) -> None:
    token_file.write_text("hf_canary")
    token_file.chmod(0)
    prepare = partial(without_right_to_token, hub.endpoint, open_cache, str(token_file))
    assert run(["pull", REPOSITORY], prepare=prepare) == [Exit.USAGE]
    assert gets(hub) == []
