"""zoo doctor as a verb, and on a machine: GPUs, threads, room, the user's settings."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from dists import install, sound, write_module
from hypothesis import given
from hypothesis import strategies as st

import zoo.cli
from zoo.doctor.check import WIDTH, Check, Report, State
from zoo.doctor.examine import looked
from zoo.doctor.machine import (
    Driven,
    ask_driver,
    disk_checks,
    gpu_checks,
    processor_checks,
    shared_memory_checks,
    usable_cores,
)
from zoo.doctor.settings import catalog_checks, namespace_checks
from zoo.doctor.trials import Trial

ROOT = Path(__file__).parents[2]
CANARIES = ("hf_canaryOfTheEnvironment", "hf_canaryOfTheFile")


@pytest.fixture
def fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Path, token_file: Path) -> Path:
    """A machine with which nothing is wrong; its packages, quick to import, can be spoilt."""
    site = tmp_path / "site"
    site.mkdir()
    # Extras that are really installed import numpy and torch, which are not what they seem here.
    install(site, "opencv-python-headless", module="cv2")
    install(site, "onedl-mmsegmentation", module="mmseg")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return site


def doctor(*words: str) -> int:
    """The exit code."""
    with pytest.raises(SystemExit) as caught:
        zoo.cli.main(["doctor", *words])
    return int(caught.value.code or 0)


# The verb


def test_a_machine_that_is_fit(fit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sound(fit)
    assert doctor("--offline", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["worst"] in {"ok", "note", "warn"}  # this machine's disks may be full
    names = [check["name"] for check in report["checks"]]
    assert {"python", "tinyzoo", "torch", "gpu", "processor", "threads", "cache"} <= {*names}
    assert {"endpoint", "token", "xet", "disk", "namespace", "catalog"} <= {*names}
    for check in report["checks"]:
        assert check.keys() == {"name", "state", "what", "fix"}
        assert check["state"] in {"ok", "note", "warn"}, check
        assert check["fix"] or check["state"] != "warn"


def test_a_machine_that_is_not(fit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sound(fit)
    write_module(fit, "timm", "raise ImportError('half installed')")
    assert doctor("--offline") == 2
    shown = capsys.readouterr()
    assert "bad   timm" in shown.out
    assert "does not import: ImportError: half installed" in shown.out
    assert "fix: pip install --force-reinstall timm" in shown.out
    assert shown.err == ""
    assert doctor("--offline", "--json") == 2
    assert json.loads(capsys.readouterr().out)["worst"] == "bad"


def test_neither_form_shows_a_token(
    fit: Path,
    token_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    sound(fit)
    monkeypatch.setenv("HF_TOKEN", CANARIES[0])
    token_file.write_text(CANARIES[1])
    for form in ((), ("--json",), ("--debug",)):
        doctor("--offline", *form)
        shown = "".join(capfd.readouterr())
        assert "from HF_TOKEN" in shown
        assert "canary" not in shown


def test_it_works_where_torch_does_not(tmp_path: Path) -> None:
    write_module(tmp_path, "torch", "raise OSError('libcudnn.so.9: cannot open shared object')")
    (tmp_path / "token").write_text(CANARIES[1])
    environ = {
        **os.environ,
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}",
        "HF_TOKEN_PATH": str(tmp_path / "token"),
    }
    command = [sys.executable, "-m", "zoo", "doctor", "--offline", "--json"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == ""
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert "libcudnn.so.9" in checks["torch"]["what"]
    assert checks["torch"]["fix"].endswith("torch torchvision")
    assert "not tried: torch does not import" in checks["torchvision"]["what"]
    assert checks["numpy"]["state"] == checks["catalog"]["state"] == "ok"
    assert CANARIES[1] not in done.stdout


@pytest.mark.slow
def test_this_environment_is_fit(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "zoo", "doctor", "--offline", "--json"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert done.stderr == ""


def test_output_that_is_ascii(fit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound(fit)
    install(fit, "naïve–package", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "–1")
    for form in ((), ("--json",)):
        written = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
        doctor("--offline", *form)
        sys.stdout.flush()
        assert b"OMP_NUM_THREADS=\\u20131" in written.getvalue()
        assert b"output in ascii" in written.getvalue()
    assert json.loads(written.getvalue())


WORDS = st.lists(st.text("abc/-.–", min_size=1, max_size=60), min_size=1, max_size=30).map(" ".join)


@given(texts=st.lists(st.tuples(st.sampled_from(list(State)), WORDS, WORDS), max_size=5))
def test_the_table_fits_and_counts(texts: list[tuple[State, str, str]]) -> None:
    checks = tuple(Check("shared memory", state, what, fix) for state, what, fix in texts)
    report = Report(checks=checks)
    lines = report.text().splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert lines[-1].startswith(f"{len(texts)} checks")
    order = ["ok", "note", "warn", "bad"]
    worst = max((order.index(state) for state, *_ in texts), default=0)
    assert report.as_dict()["worst"] == order[worst]


def test_a_look_that_fails_is_a_line() -> None:
    def broken(error: Exception) -> Iterator[Check]:
        yield Check("one", State.OK, "fine\x1b[31m\udc80")
        raise error

    one, other = looked("many", lambda: broken(OSError("no\nsuch disk")))
    assert one.what == "fine\\x1b[31m\\udc80"
    assert (other.name, other.state) == ("many", State.WARN)
    assert other.what == "could not be looked at: OSError: no\\nsuch disk"
    _, other = looked("many", lambda: broken(ModuleNotFoundError("No module named 'yaml'")))
    assert (other.state, other.fix) == (State.BAD, "pip install yaml")


# The machine


def seen(gpus: int = 0, **facts: object) -> Trial:
    every = [{"name": "NVIDIA H200", "memory": 150 << 30, "bf16": True}] * gpus
    return Trial(facts={"cuda": "13.0", "hip": None, "mps": False, "gpus": every, **facts})


def driven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> list[Driven]:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return ask_driver()


def test_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    gpus = driven(tmp_path, monkeypatch, "echo NVIDIA H200, 580.65.06")
    assert gpus == [Driven("NVIDIA H200", "580.65.06")]
    one, other = gpu_checks(seen(2), gpus)
    assert (one.name, other.name) == ("gpu 0", "gpu 1")
    assert one.what == (
        "NVIDIA H200, 150 GiB, bf16; torch is built for CUDA 13.0, driver 580.65.06"
    )
    (check,) = gpu_checks(seen(), gpus)
    assert (check.state, check.fix) == (State.WARN, "update the NVIDIA driver")
    (check,) = gpu_checks(seen(cuda=None), gpus)
    assert check.state == State.WARN
    assert "built for the CPU only" in check.what
    assert "torch torchvision" in check.fix
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (check,) = gpu_checks(seen(), gpus)
    assert (check.state, check.fix) == (State.WARN, "unset CUDA_VISIBLE_DEVICES")
    assert [check.state for check in gpu_checks(seen(), [])] == [State.OK]
    assert [check.state for check in gpu_checks(Trial(error="hangs"), gpus)] == [State.WARN]


@pytest.mark.parametrize("script", ["exit 9", "echo no devices were found", "kill -9 $$"])
def test_a_driver_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    assert driven(tmp_path, monkeypatch, script) == []


def test_threads_that_are_in_one_another_s_way() -> None:
    assert {check.state for check in processor_checks({"OMP_WAIT_POLICY": "PASSIVE"})} <= {
        State.OK,
        State.NOTE,
    }
    environ = {"OMP_WAIT_POLICY": "active", "OMP_NUM_THREADS": "9999", "MKL_NUM_THREADS": "x"}
    slow = [check for check in processor_checks(environ) if check.state == State.WARN]
    assert [check.fix for check in slow] == [
        "unset OMP_WAIT_POLICY",
        f"export OMP_NUM_THREADS={usable_cores()}",
    ]


def test_the_cores_of_a_container(tmp_path: Path) -> None:
    limit = tmp_path / "cpu.max"
    every = usable_cores(limit)
    for text, cores in [("max 100000", every), ("100000 100000", 1), ("50000 100000", 1), ("", 1)]:
        limit.write_text(text)
        assert usable_cores(limit) == (cores if text else every)


def test_room(tmp_path: Path) -> None:
    (shared,) = shared_memory_checks(Path("/proc"))  # a file system without any
    assert shared.state == State.WARN
    assert "--shm-size" in shared.fix
    assert list(shared_memory_checks(tmp_path / "none")) == []
    one, other = disk_checks({"a": tmp_path / "a", "b": tmp_path / "b", "c": Path("/proc/c")})
    assert "free for a, b (" in one.what
    assert other.state == State.WARN


# The user's own


def test_a_namespace(settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (check,) = namespace_checks()
    assert check.state == State.NOTE
    monkeypatch.setenv("ZOO_NAMESPACE", "some-org")
    (check,) = namespace_checks()
    assert (check.state, check.what) == (State.OK, "some-org")
    monkeypatch.delenv("ZOO_NAMESPACE")
    (settings / "config.toml").write_text("namespace = [")
    (check,) = namespace_checks()
    assert check.state == State.BAD
    assert "config.toml" in check.what


def test_a_broken_catalog(settings: Path) -> None:
    (check,) = catalog_checks()
    assert check.state == State.OK
    entries = "".join(f"[models.broken-{number}]\nheads = 3\n" for number in range(8))
    (settings / "catalog.toml").write_text("format = 1\n" + entries)
    checks = list(catalog_checks())
    assert {check.state for check in checks} == {State.BAD}
    assert len(checks) == 6
    assert "models.broken-0" in checks[0].what
    assert "3 more" in checks[-1].what
    (settings / "catalog.toml").write_text("format = ")
    (check,) = catalog_checks()
    assert "not readable as TOML" in check.what
