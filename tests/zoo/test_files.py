"""Writing, naming and sweeping files: old content or new content, inside the root or refused."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import zoo.files
from zoo.errors import DiskError, IntegrityError
from zoo.files import (
    atomic_folder,
    atomic_json,
    atomic_write,
    disk_errors,
    process_alive,
    require_space,
    safe_join,
    sha256_of,
    sweep,
)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_writes_bytes_text_and_json_into_folders_to_be_made(tmp_path: Path) -> None:
    atomic_write(tmp_path / "a" / "b" / "c", b"\x00\xff")
    atomic_write(tmp_path / "text", "é")
    atomic_json(tmp_path / "json", {"a": "é"})
    assert tree(tmp_path) == {
        "a/b/c": b"\x00\xff",
        "text": "é".encode(),
        "json": '{\n  "a": "é"\n}\n'.encode(),
    }
    with pytest.raises(ValueError, match="JSON"):
        atomic_json(tmp_path / "json", float("nan"))
    assert (tmp_path / "json").read_text().startswith("{")


@pytest.mark.parametrize("point", ["fsync", "replace"])
def test_an_exception_leaves_the_old_content_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    atomic_write(tmp_path / "state", "old")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    owner = os if point == "fsync" else Path
    monkeypatch.setattr(owner, point, interrupted)
    with pytest.raises(KeyboardInterrupt):
        atomic_write(tmp_path / "state", "new")
    assert tree(tmp_path) == {"state": b"old"}


@pytest.mark.parametrize("point", ["fsync", "rename", "replace"])
def test_a_kill_leaves_the_old_content_and_a_temporary_to_sweep(tmp_path: Path, point: str) -> None:
    atomic_write(tmp_path / "state", "old")
    with atomic_folder(tmp_path / "folder") as folder:
        (folder / "part").write_text("old")
    child = os.fork()
    if child == 0:
        for owner in (os, Path):
            if hasattr(owner, point):
                setattr(owner, point, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        if point != "rename":
            atomic_write(tmp_path / "state", "new")
        zoo.files._exchange = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        with atomic_folder(tmp_path / "folder") as folder:
            (folder / "part").write_text("new")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 3
    sweep(tmp_path)
    assert tree(tmp_path) == {"state": b"old", "folder/part": b"old"}


def test_a_full_disk_is_a_disk_error_that_names_the_bytes(tmp_path: Path, full_disk: int) -> None:
    atomic_write(tmp_path / "state", "old")
    with pytest.raises(DiskError, match=r"8,388,609 bytes needed, [0-9,]+ free") as caught:
        atomic_write(tmp_path / "state", bytes(full_disk + 1))
    assert caught.value.code == 6
    assert caught.value.where == str(tmp_path / "state")
    with (
        pytest.raises(DiskError, match="no space left"),
        atomic_folder(tmp_path / "folder") as folder,
    ):
        (folder / "part").write_bytes(bytes(full_disk + 1))
    assert tree(tmp_path) == {"state": b"old"}


def test_dev_full_and_the_words_of_libraries_are_disk_errors(tmp_path: Path) -> None:
    with (
        pytest.raises(DiskError, match="no space left"),
        disk_errors(tmp_path),
        Path("/dev/full").open("wb", buffering=0) as file,
    ):
        file.write(b"x")
    for words in (
        "I/O error: No space left on device",
        "[enforce fail at inline_container.cc:672] . unexpected pos 4195136 vs 4195088",
    ):
        with pytest.raises(DiskError, match="no space left"), disk_errors(tmp_path / "not" / "yet"):
            raise RuntimeError(words)
    with pytest.raises(DiskError, match="cannot be written"), disk_errors(tmp_path):
        raise PermissionError(13, "Permission denied")
    with pytest.raises(RuntimeError, match="something else"), disk_errors(tmp_path):
        raise RuntimeError("something else")


def test_space_is_required_before_a_write(tmp_path: Path) -> None:
    require_space(tmp_path, 1)
    with pytest.raises(DiskError, match="1,000,000,000,000,000,000 bytes needed"):
        require_space(tmp_path, 10**18)


@pytest.mark.parametrize("exchange", [True, False], ids=["exchanged", "stepping aside"])
def test_a_folder_is_replaced_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:  # as on a file system that cannot
        monkeypatch.setattr(zoo.files, "_exchange", lambda *_: False)
    for content in ("one", "two"):
        with atomic_folder(tmp_path / "out") as folder:
            (folder / "deep" / "er").mkdir(parents=True)
            (folder / "deep" / "er" / content).write_text(content)
            (folder / "deep" / "er" / content).chmod(0o600)
    assert tree(tmp_path) == {"out/deep/er/two": b"two"}
    umask = os.umask(0o022)
    os.umask(umask)
    assert (tmp_path / "out/deep/er/two").stat().st_mode & 0o777 == 0o666 & ~umask


def test_at_no_moment_is_there_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    if not zoo.files._exchange(tmp_path / "one", tmp_path / "two"):
        pytest.skip("this file system cannot exchange two folders")
    with atomic_folder(tmp_path / "out"):
        pass

    def away(path: Path, target: Path) -> None:
        raise AssertionError(f"{path} was renamed while it was in use")

    monkeypatch.setattr(Path, "rename", away)
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "part").write_text("new")
    assert tree(tmp_path / "out") == {"part": b"new"}


def test_a_folder_whose_making_fails_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "part").write_text("old")

    def fail_inside() -> None:
        with atomic_folder(tmp_path / "out") as folder:
            (folder / "part").write_text("new")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail_inside()
    assert tree(tmp_path) == {"out/part": b"old"}

    # The last rename fails, on a file system that cannot exchange two folders.
    monkeypatch.setattr(zoo.files, "_exchange", lambda *_: False)
    rename = Path.rename

    def fail_late(path: Path, target: Path) -> Path:
        if target == tmp_path / "out" and "old" not in path.name:
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_late)
    with pytest.raises(OSError, match="Input/output"), atomic_folder(tmp_path / "out") as folder:
        (folder / "part").write_text("new")
    assert tree(tmp_path) == {"out/part": b"old"}


def test_sweep_takes_dead_writers_temporaries_only(tmp_path: Path) -> None:
    dead, alive = dead_pid(), os.getppid()
    (tmp_path / f".tmp-{dead}-folder").mkdir()
    (tmp_path / f".tmp-{dead}-folder" / "part").touch()
    (tmp_path / f".tmp-{dead}-file").touch()
    kept = [f".tmp-{alive}-file", f".tmp-{os.getpid()}-file", ".tmp-x-file", "tmp-1-x", "file"]
    for name in kept:
        (tmp_path / name).touch()
    sweep(tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(kept)
    sweep(tmp_path / "not there")
    assert not process_alive(dead)
    assert process_alive(1)


def test_sha256_of(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of(tmp_path / "abc") == expected


_PIECES = st.sampled_from(
    [
        "..",
        ".",
        "",
        "a",
        "b.json",
        "con",
        "NUL.txt",
        "C:",
        "\\",
        "\0",
        "\n",
        "é",
        "x" * 256,
        " ",
        "~",
    ]
)
_NAMES = st.text(max_size=12) | st.lists(_PIECES, max_size=5).map("/".join)


@settings(
    max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(name=_NAMES, follow=st.booleans())
def test_every_name_lands_inside_or_is_refused(tmp_path: Path, name: str, follow: bool) -> None:
    root = tmp_path / "root"
    root.mkdir(exist_ok=True)
    try:
        joined = safe_join(root, name, follow_links=follow)
    except IntegrityError:
        return
    assert joined.resolve().is_relative_to(root)
    assert joined.resolve() != root


REFUSED = [
    *["", ".", "..", "/", "//a", "a/../../b", "a//b", "./a", "a/.", "a/", "/etc/passwd", "~/..\\b"],
    *["a\\b", "C:", "C:a", "\\\\host\\share", "a\0b", "a\x1bb", "a\x7f", "a:b", "a|b", "a?", 'a"'],
    *["con", "CON", "nul.txt", "a/lpt1", "a ", "a.", "a /b", "x" * 256, "é" * 128],
]


@pytest.mark.parametrize("name", REFUSED)
def test_names_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(IntegrityError, match="refused a file name"):
        safe_join(tmp_path, name)


def test_names_allowed(tmp_path: Path) -> None:
    for name in (
        "model.safetensors",
        "a/b-c_d.json",
        "..a",
        ".gitattributes",
        "console",
        "é" * 127,
    ):
        assert safe_join(tmp_path, name) == tmp_path / name


def test_a_link_out_of_the_root_is_refused_unless_followed(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "outside").mkdir()
    (root / "out").symlink_to(tmp_path / "outside")
    (root / "in").symlink_to(root)
    for name in ("out", "out/file"):
        with pytest.raises(IntegrityError):
            safe_join(root, name)
        assert safe_join(root, name, follow_links=True) == root / name
    assert safe_join(root, "in/file") == root / "in" / "file"
