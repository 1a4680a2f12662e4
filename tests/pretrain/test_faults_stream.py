"""What may happen to streamed shards, to whole runs: code, what, where, what next."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import assert_error
from runs import LONG, TINY_MAE, Run, last_words, run, wait_for_row, words
from shards import write_shards

from zoo.errors import Exit

SETTINGS = {**TINY_MAE, "training.steps": "8", "data.shuffle_buffer": "9"}


def cut(shard: Path) -> None:
    data = shard.read_bytes()
    shard.write_bytes(data[: len(data) // 2])


def link(shard: Path) -> None:
    member = tarfile.TarInfo("zzz.jpg")
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    _append(shard, member)


def absolute(shard: Path) -> None:
    _append(shard, tarfile.TarInfo("/etc/zzz.jpg"))


def obeyed(shard: Path) -> None:
    """A name that a terminal would obey."""
    _append(shard, tarfile.TarInfo("../\x1b[2Jzzz.jpg"))


def _append(shard: Path, member: tarfile.TarInfo) -> None:
    with tarfile.open(shard, "a", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(member, io.BytesIO())


@pytest.mark.parametrize(("workers", "ranks"), [(0, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize(
    ("harm", "code", "what", "where", "fix"),
    [
        (cut, Exit.DATA, "not a whole tar archive", "002.tar", "fetch it or make it anew"),
        (link, Exit.INTEGRITY, "a link or a device", "002.tar: 'zzz.jpg'", "from plain files"),
        (absolute, Exit.INTEGRITY, "leads out of it", "'/etc/zzz.jpg'", "from plain files"),
        (obeyed, Exit.INTEGRITY, "leads out of it", r"'../\x1b[2Jzzz.jpg'", "from plain files"),
    ],
)
def test_a_shard_that_is_not_what_it_should_be(
    tmp_path: Path,
    harm: Callable[[Path], None],
    code: Exit,
    what: str,
    where: str,
    fix: str,
    workers: int,
    ranks: int,
) -> None:
    shards, out = write_shards(tmp_path / "shards", [9, 9, 9, 9]), tmp_path / "run"
    harm(shards / "002.tar")
    settings = {**SETTINGS, "data.workers": str(workers)}
    assert code in run(words("mae-vit-t", f"wds:{shards}", out, settings), ranks=ranks)
    assert_error(last_words(out), code, what=what, where=where, fix=fix)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_vanishes(tmp_path: Path, workers: int) -> None:
    shards, out = write_shards(tmp_path / "shards", [9, 9, 9, 9]), tmp_path / "run"
    settings = {**LONG, "data.shuffle_buffer": "9", "data.workers": str(workers)}
    started = Run(words("mae-vit-t", f"wds:{shards}", out, settings))
    wait_for_row(out, started)
    (shards / "002.tar").unlink()
    assert started.wait() == [3]
    what, where, fix = "cannot be read: No such file", f"{shards}/002.tar", "check that it is there"
    assert_error(last_words(out), Exit.DATA, what=what, where=where, fix=fix)


def test_fewer_shards_than_ranks(tmp_path: Path) -> None:
    shards, out = write_shards(tmp_path / "shards", [18, 18]), tmp_path / "run"
    uneven = {**SETTINGS, "training.global_batch": "12"}
    assert 2 in run(words("mae-vit-t", f"wds:{shards}", out, uneven), ranks=3)
    what, fix = "2 shards are too few for 3 ranks", "use fewer ranks, or make smaller shards"
    assert_error(last_words(out), Exit.USAGE, what=what, where="data.source", fix=fix)
