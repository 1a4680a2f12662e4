"""Read a ``.pth`` with as little trust as possible.  Runs as a process of its own.

    python -m zoo.foreign.unpickle FILE FOLDER PARTS MEMORY CPU WRITTEN

``weights_only`` has been broken before (CVE-2025-32434, CVE-2026-24747).  Whatever a file manages
to do here is bounded by the limits, and only tensors and a short report leave, as safetensors and
JSON, in FOLDER.  ``zoo.foreign.quarantine`` starts this and reads what it left.
"""

import argparse
import json
import math
import os
import re
import sys
import time
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from zoo.tensors import MAX_TENSORS

try:
    import resource
except ImportError:  # Windows has no such limits; the process of its own and its timeout remain
    resource = None

TENSORS, REPORT = "tensors.safetensors", "report.json"
MOST_SHOWN = 12
OPTIONS = ("model", "teacher_model", "teacher_path")
"""Of a training script's options (``args``), those that say what its weights are."""

_NAME = re.compile(r"[A-Za-z0-9_.]{1,200}")
_DTYPES = {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32}
_OPTION = re.compile(r"[A-Za-z0-9_.+-]{1,100}")
_GLOBAL = re.compile(r"GLOBAL (\S{1,100})")
_TOO_LARGE = re.compile(
    r"allocate memory|not enough memory|bad_?alloc|overflow|File too large", re.IGNORECASE
)
_NO_SPACE = re.compile(r"No space left|quota", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """What a file holds, or why that cannot be said."""

    failure: str = ""
    """Empty, or one of memory, space, unsafe, unreadable."""
    reason: str = ""
    """Of the failure, in one line."""
    kind: str = ""
    """Type of the outermost object."""
    entries: int = 0
    """How many the outermost object has, where it is a dict."""
    keys: dict[str, str] = field(default_factory=dict)
    """The first of them, with the kind of each value."""
    part: str = ""
    """The key under which the tensors were found; empty for the file as a whole."""
    tensors: int = 0
    """How many were copied."""
    names: list[str] = field(default_factory=list)
    """The first of them."""
    options: dict[str, str] = field(default_factory=dict)
    """Those of OPTIONS that are stated; of a path, only its last part."""
    odd: list[str] = field(default_factory=list)
    """The first entries of the part that are no tensors a network could have."""


class _Unread:
    """Stands where a file asks for a numpy scalar: takes anything, keeps nothing.

    DINO's optimizer state holds its learning rates as numpy's float64.  The optimizer is not
    wanted; numpy's own constructors need not run for it.
    """

    def __new__(cls, *_: object) -> "_Unread":
        return object.__new__(cls)

    def __setstate__(self, _: object) -> None:
        pass


_ALLOWED = [
    argparse.Namespace,
    *(
        (_Unread, name)
        for name in (
            "numpy.dtype",
            "numpy.core.multiarray.scalar",  # until numpy 2
            "numpy._core.multiarray.scalar",
        )
    ),
]


def main(words: list[str]) -> None:
    """Read FILE, leave a report and its tensors in FOLDER: the first of PARTS it has, or it all."""
    file, folder, parts = Path(words[0]), Path(words[1]), words[2].split(",")
    torch.set_num_threads(1)  # each thread's stack and arena would count as memory
    _limit(*map(int, words[3:]))
    try:
        seen = _read(file, folder, parts)
    except Exception as error:
        seen = _failed(error)
    (folder / REPORT).write_text(json.dumps(asdict(seen)))


def _limit(memory: int, cpu: int, written: int) -> None:
    """Bound what happens from here on: bytes beside those in use, seconds, bytes per file."""
    if resource is None:
        return
    _lower(resource.RLIMIT_CORE, 0, 0)
    _lower(resource.RLIMIT_FSIZE, written, written)
    seconds = math.ceil(time.process_time()) + cpu
    _lower(resource.RLIMIT_CPU, seconds, seconds + 1)  # the soft one says why, the hard one kills
    statm = Path("/proc/self/statm")
    if statm.exists():  # macOS accepts the limit and does not keep it
        in_use = int(statm.read_text().split()[0]) * os.sysconf("SC_PAGESIZE")
        _lower(resource.RLIMIT_AS, in_use + memory, in_use + memory)


def _lower(which: int, soft: int, hard: int) -> None:
    assert resource is not None
    given = [limit for limit in resource.getrlimit(which) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(which, (min([soft, *given]), min([hard, *given])))


def _read(file: Path, folder: Path, parts: list[str]) -> Seen:
    damaged = _damaged(file)
    if damaged:
        return Seen(failure="unreadable", reason=damaged)
    with torch.serialization.safe_globals(_ALLOWED):  # type: ignore[arg-type]  # pairs, as documented
        content = torch.load(file, map_location="cpu", weights_only=True)
    if not _is_dict(content):
        return Seen(kind=_kind(content))
    entries = list(dict.items(content))  # not content.items: a file can shadow that
    keys = {_shown(key): _kind(value) for key, value in entries[:MOST_SHOWN]}
    outer = {"kind": "dict", "entries": len(entries), "keys": keys}
    part = next((key for key in parts if _is_dict(dict.get(content, key))), "")
    inner: Any = dict.get(content, part)
    chosen = list(dict.items(inner)) if part else entries
    odd = list(_odd(chosen))
    if odd and not part:
        return Seen(**outer)
    tensors = {} if odd or len(chosen) > MAX_TENSORS else dict(chosen)
    # Copies: views may share memory, and safetensors holds plain contiguous tensors only.
    plain = {
        name: tensor.detach().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    save_file(plain, folder / TENSORS)
    return Seen(
        **outer,
        part=part,
        tensors=len(plain),
        names=list(plain)[:MOST_SHOWN],
        options=_options(dict.get(content, "args")),
        odd=odd[:MOST_SHOWN],
    )


def _damaged(file: Path) -> str:
    """What is wrong with the file's checksums, which torch writes and does not look at."""
    if not zipfile.is_zipfile(file):
        return ""  # from before torch 1.6, or cut short, which torch finds itself
    with zipfile.ZipFile(file) as archive:
        record = archive.testzip()
    return f"damaged: {ascii(record)[:80]} does not have its checksum" if record else ""


def _is_dict(value: object) -> bool:
    return type(value) in (dict, OrderedDict)


def _options(args: object) -> dict[str, str]:
    """What a Namespace of options says of the weights; no path of somebody's machine."""
    if type(args) is not argparse.Namespace:
        return {}
    stated = {name: vars(args).get(name) for name in OPTIONS}
    last = {n: re.split(r"[/\\]", v)[-1] for n, v in stated.items() if type(v) is str}
    return {name: value for name, value in last.items() if _OPTION.fullmatch(value)}


def _odd(entries: list[tuple[Any, Any]]) -> Iterator[str]:
    for name, value in entries:
        plain = (
            isinstance(name, str)
            and _NAME.fullmatch(name)
            and type(value) in (Tensor, torch.nn.Parameter)
            and value.layout == torch.strided
            and value.device.type == "cpu"
            and value.dtype in _DTYPES
        )
        if not plain:
            yield f"{_shown(name)} ({_kind(value)})"


def _shown(name: object) -> str:
    text = name if isinstance(name, str) and _NAME.fullmatch(name) else ascii(name)
    return text[:80]


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} tensor"
    if not _is_dict(value):
        return type(value).__name__
    values = list(dict.values(value))  # type: ignore[arg-type]
    whole = values and all(isinstance(inner, Tensor) for inner in values)
    return f"dict of {len(values)} tensors" if whole else f"dict of {len(values)}"


def _failed(error: Exception) -> Seen:
    """The failure in our own words: torch's advise to switch its safety off."""
    text = str(error)
    asked = _GLOBAL.search(text)
    if isinstance(error, MemoryError) or _TOO_LARGE.search(text):
        return Seen(failure="memory")
    if _NO_SPACE.search(text):
        return Seen(failure="space")
    if asked:
        return Seen(failure="unsafe", reason=ascii(asked[1])[1:-1])
    if "TorchScript" in text:
        return Seen(failure="unreadable", reason="a TorchScript archive: a program, not weights")
    if "hasRecord" in text or "data.pkl" in text:
        return Seen(failure="unreadable", reason="a zip archive that torch.save did not write")
    if "PytorchStreamReader" in text or isinstance(error, EOFError):
        return Seen(failure="unreadable", reason="damaged or cut short")
    return Seen(failure="unreadable", reason="nothing that torch.save writes of plain weights")


if __name__ == "__main__":
    main(sys.argv[1:])
