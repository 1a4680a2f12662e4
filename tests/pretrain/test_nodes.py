"""Two machines: network namespaces with a cable between them, each with a host name of its own."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from runs import TINY_MAE, last_words, outcome, words
from torchruns import ranks_at_work, wait_for_rows

NODES = (f"zoo-a-{os.getpid()}", f"zoo-b-{os.getpid()}")  # these tests may run twice at a time
SETTINGS = {**TINY_MAE, "training.steps": "20"}
LONG = {**TINY_MAE, "training.steps": "1000000", "training.save_every_steps": "50"}
DISTURBED = {**TINY_MAE, "training.steps": "300", "training.save_every_steps": "20"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("unshare"),
        reason="network namespaces need root, iproute2 and util-linux",
    ),
]


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@pytest.fixture(scope="module")
def machines() -> Iterator[None]:
    """The first at 10.99.0.1 and the second at 10.99.0.2; neither sees anything else."""
    hosts = [Path("/etc/netns") / name for name in NODES]
    try:
        for name, place in zip(NODES, hosts, strict=True):
            ip("netns", "add", name)
            place.mkdir(parents=True)
            own = [f"10.99.0.{number} {node}\n" for number, node in enumerate(NODES, start=1)]
            (place / "hosts").write_text("127.0.0.1 localhost\n" + "".join(own))
        one, other = NODES
        peer = ("peer", "cable", "netns", other)
        ip("link", "add", "cable", "netns", one, "type", "veth", *peer)
        for number, name in enumerate(NODES, start=1):
            ip("-n", name, "address", "add", f"10.99.0.{number}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield
    finally:
        for name, place in zip(NODES, hosts, strict=True):
            subprocess.run(["ip", "netns", "delete", name], check=False)
            shutil.rmtree(place, ignore_errors=True)


_STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def nobody_stays() -> Iterator[None]:
    yield
    for process in _STARTED:
        process.kill()  # its torchrun, and the ranks below that, go with it
        process.communicate()
    _STARTED.clear()


def start(
    node: str, command: list[str], *options: str, private: Path | None = None
) -> subprocess.Popen[str]:
    """private: a folder that this machine has for itself."""
    both = ["--nproc", "1", "--nodes", "2", "--rendezvous", f"{NODES[0]}:29500", *options]
    prepare = f"hostname {node}; "
    if private:
        prepare += f"mount -t tmpfs tmpfs {private}; "
    sh = ["sh", "-c", prepare + 'exec "$@"', "sh"]
    inside = ["unshare", "--uts", "--mount", *sh, sys.executable, "-m", "zoo"]
    process = subprocess.Popen(
        ["ip", "netns", "exec", node, *inside, *command, *both],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    _STARTED.append(process)
    return process


def both(command: Callable[[str], list[str]], *options: str) -> list[subprocess.Popen[str]]:
    return [start(node, command(node), *options) for node in NODES]


def end(started: list[subprocess.Popen[str]]) -> tuple[list[int], str]:
    said = [process.communicate(timeout=280) for process in started]
    return [process.returncode for process in started], "\n".join(e for _, e in said)


def test_two_machines_make_what_two_ranks_of_one_make(
    machines: None, photos: Path, tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    alone = [sys.executable, "-m", "zoo", *words("mae-vit-t", photos, one, SETTINGS)]
    subprocess.run([*alone, "--nproc", "2"], check=True, capture_output=True)
    codes, said = end(both(lambda _: words("mae-vit-t", photos, two, SETTINGS)))
    assert codes == [0, 0], said
    assert outcome(two) == outcome(one)


@pytest.mark.parametrize(("machine", "restarts"), [(0, 1), (1, 0), (1, 1)])
def test_a_signal_to_one_machine_stops_both_with_the_state_saved(
    machines: None, photos: Path, tmp_path: Path, machine: int, restarts: int
) -> None:
    """That of rank 0, where both meet, or the other one; where restarts are left, none is made."""
    out = tmp_path / "run"
    started = both(lambda _: words("mae-vit-t", photos, out, LONG), "--restarts", f"{restarts}")
    wait_for_rows(out, started)
    began = time.monotonic()
    started[machine].send_signal(signal.SIGTERM)
    codes, said = end(started)
    assert time.monotonic() - began < 60
    assert codes == [75, 75], said
    assert last_words(out)["code"] == 75


def test_a_folder_of_ones_own_is_refused_on_both(
    machines: None, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    command = words("mae-vit-t", photos, out, SETTINGS)
    codes, said = end([start(node, command, private=out) for node in NODES])
    assert codes == [2, 2], said
    assert f"not every machine sees the run's folder: {NODES[1]} do not" in said
    assert "a file system that all machines share" in said


def test_other_data_on_one_machine_is_refused_on_both(
    machines: None, photos: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(photos, other)
    next(other.rglob("*.jpg")).unlink()
    data = dict(zip(NODES, (photos, other), strict=True))
    codes, said = end(both(lambda node: words("mae-vit-t", data[node], tmp_path / "run", SETTINGS)))
    assert codes == [3, 3], said
    assert "the ranks do not see the same data" in said
    assert f"on {NODES[1]}" in said


@pytest.fixture(scope="module")
def undisturbed(
    machines: None, photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("undisturbed")
    codes, said = end(both(lambda _: words("mae-vit-t", photos, out, DISTURBED)))
    assert codes == [0, 0], said
    return outcome(out)


def test_a_lost_rank_restarts_all_and_the_bits_are_the_same(
    machines: None, photos: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    out = tmp_path / "run"
    started = both(lambda _: words("mae-vit-t", photos, out, DISTURBED), "--restarts", "2")
    wait_for_rows(out, started, rows=10)
    os.kill(ranks_at_work(out)[1], signal.SIGKILL)
    codes, said = end(started)
    assert codes == [0, 0], said
    assert "continuing from step" in said
    assert outcome(out) == undisturbed


def test_a_lost_machine_is_waited_for_and_the_bits_are_the_same(
    machines: None, photos: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    out = tmp_path / "run"
    command = words("mae-vit-t", photos, out, DISTURBED)
    first, second = both(lambda _: command, "--restarts", "2")
    wait_for_rows(out, [first, second], rows=10)
    second.kill()  # its torchrun, and the rank below that, go with it
    second.communicate()
    codes, said = end([first, start(NODES[1], command, "--restarts", "2")])
    assert codes == [0, 0], said
    assert "continuing from step" in said
    assert outcome(out) == undisturbed
