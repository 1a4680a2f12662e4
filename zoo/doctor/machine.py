"""The machine: GPUs, processor cores and what makes threads slow, shared memory, disks."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from zoo.doctor.check import NOTE, OK, WARN, Check, printable
from zoo.doctor.remedy import BOTH
from zoo.doctor.trials import Trial

LEAST_SHARED = 1 << 30
"""Bytes; a batch of 256 images of 224 pixels is 154 MB in fp32, and workers keep some ahead."""
LEAST_FREE = 2 << 30
"""Bytes: MAE-L is 1.2 GB."""

_SMI = ["--query-gpu=name,driver_version", "--format=csv,noheader"]
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Driven(NamedTuple):
    """A GPU as its driver names it."""

    name: str
    driver: str


def gpu_checks(trial: Trial | None, driven: list[Driven]) -> Iterator[Check]:
    """trial: torch's own answer.  driven: what the driver sees, with torch or without."""
    names = ", ".join(sorted({gpu.name for gpu in driven}))
    driver = f", driver {driven[0].driver}" if driven else ""
    if trial is None or trial.error:
        why = f": {printable(trial.error)}" if trial else ""
        seen = f"; there is {names}{driver}" if driven else ""
        yield Check("gpu", WARN, f"torch does not say{why}{seen}", "mend torch first")
        return
    facts = trial.facts
    build = "torch is built for " + _built_for(facts)
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if gpus := facts.get("gpus"):
        for number, gpu in enumerate(gpus):
            yield Check(f"gpu {number}", OK, f"{_gpu(gpu)}; {build}{driver}")
    elif facts.get("mps"):
        yield Check("gpu", OK, "Apple's, by MPS; --device takes cuda or cpu")
    elif driven and hidden is not None:
        what = f"{names}{driver}: hidden by CUDA_VISIBLE_DEVICES={printable(hidden, 40)}"
        yield Check("gpu", WARN, what, "unset CUDA_VISIBLE_DEVICES")
    elif driven:
        fix = "update the NVIDIA driver" if facts.get("cuda") else BOTH
        yield Check("gpu", WARN, f"{names}{driver}: not used; {build}", fix)
    else:
        yield Check("gpu", OK, f"none; {build}, and runs on the CPU")


def ask_driver() -> list[Driven]:
    """The GPUs that ``nvidia-smi`` names; none where there is no such program."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        done = subprocess.run(
            [program, *_SMI], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return []
    rows = [line.rsplit(",", 1) for line in done.stdout.splitlines() if done.returncode == 0]
    return [Driven(*(printable(part.strip(), 60) for part in row)) for row in rows if len(row) == 2]


def processor_checks(environ: Mapping[str, str]) -> Iterator[Check]:
    """Cores, and settings of the environment that make them slow."""
    cores = usable_cores()
    of = os.cpu_count() or cores
    yield Check("processor", OK, f"{cores} cores" if cores == of else f"{cores} of {of} cores")
    slow = list(_slow_threads(environ, cores, of))
    yield from slow
    if not slow:
        policy = printable(environ.get("OMP_WAIT_POLICY", "PASSIVE"), 20)  # zoo's own, if not set
        told = [f"OMP_WAIT_POLICY={policy}" + " (zoo's default)" * (policy == "PASSIVE")]
        told += [f"{name}={printable(environ[name], 20)}" for name in _THREADS if name in environ]
        yield Check("threads", OK, ", ".join(told))


def usable_cores(group: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """What this process may use: its affinity, and the limit of its container."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        cores = os.cpu_count() or 1
    try:
        quota, period = group.read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError, ZeroDivisionError):  # "max" is no number: no limit
        return cores


def _slow_threads(environ: Mapping[str, str], cores: int, of: int) -> Iterator[Check]:
    policy = environ.get("OMP_WAIT_POLICY", "")
    if policy.upper() == "ACTIVE":
        what = "OMP_WAIT_POLICY=ACTIVE: threads wait at full speed, and take it from one another"
        yield Check("threads", WARN, what, "unset OMP_WAIT_POLICY")
    for name in _THREADS:
        count = environ.get(name, "").strip()
        if count.isdecimal() and int(count) > cores:
            what = f"{name}={printable(count, 20)}, and there are {cores} cores"
            yield Check("threads", WARN, what, f"export {name}={cores}")
    if cores < of and not environ.get("OMP_NUM_THREADS"):
        what = f"a thread for each of {of} cores, where this process may use {cores}"
        yield Check("threads", NOTE, what, f"export OMP_NUM_THREADS={cores}")


def shared_memory_checks(folder: Path = Path("/dev/shm")) -> Iterator[Check]:
    """Where loader workers hand their batches over."""
    if not folder.is_dir():
        return
    usage = shutil.disk_usage(folder)
    what = f"{folder}: {size(usage.free)} of {size(usage.total)} free"
    if usage.free >= LEAST_SHARED:
        yield Check("shared memory", OK, what)
    else:
        what += "; loader workers hand their batches over there, and die of too little"
        fix = "docker run --shm-size=2g ..., or data.workers=0"
        yield Check("shared memory", WARN, what, fix)


def disk_checks(places: Mapping[str, Path]) -> Iterator[Check]:
    """Room for each place, one line a file system."""
    found: dict[int, tuple[Path, list[str]]] = {}
    for name, place in places.items():
        existing = standing(place)
        found.setdefault(existing.stat().st_dev, (existing, []))[1].append(name)
    for existing, names in found.values():
        free = shutil.disk_usage(existing).free
        what = f"{size(free)} free for {', '.join(names)} ({existing})"
        if free >= LEAST_FREE:
            yield Check("disk", OK, what)
        else:
            yield Check("disk", WARN, what, "free some space, or choose another place")


def places() -> dict[str, Path]:
    """Where zoo writes, beside the cache and the settings."""
    return {"runs": Path.cwd() / "runs", "temporary files": Path(tempfile.gettempdir())}


def standing(place: Path) -> Path:
    """The place, or the nearest folder above it that is there."""
    for folder in [place, *place.parents]:
        with contextlib.suppress(OSError):  # above it is one that may not be looked into
            if folder.exists():
                return folder
    return Path(place.anchor)


def size(count: float) -> str:
    """Bytes in the units that disks are sold in."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _built_for(facts: Mapping[str, Any]) -> str:
    if facts.get("hip"):
        return f"ROCm {facts['hip']}"
    return f"CUDA {facts['cuda']}" if facts.get("cuda") else "the CPU only"


def _gpu(gpu: Mapping[str, Any]) -> str:
    half = "bf16" if gpu["bf16"] else "no bf16"
    return f"{printable(gpu['name'], 60)}, {gpu['memory'] / 2**30:.0f} GiB, {half}"
