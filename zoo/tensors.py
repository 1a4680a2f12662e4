"""Reading safetensors that came from anywhere, with our own limits.

The format checks its layout, never its bytes, and allows headers that cost a minute to parse:
what a model needs is far smaller, and that is what is admitted here.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from zoo.errors import IntegrityError

MAX_HEADER_BYTES = 1_000_000
MAX_TENSORS = 10_000
MAX_ELEMENTS = 10**10
_NAME = re.compile(r"[A-Za-z0-9_.]+")
_DTYPES = {"F64", "F32", "F16", "BF16", "I64", "I32", "U8", "BOOL"}


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor, from the header alone.  Raises IntegrityError."""
    header = _read_header(path)
    return {name: tuple(entry["shape"]) for name, entry in header.items()}


def _read_header(path: Path) -> dict[str, dict[str, Any]]:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= MAX_HEADER_BYTES:
                raise _refused(path, f"a header of {length:,} bytes")
            raw = file.read(length)
    except OSError as error:
        raise _refused(path, error.strerror or type(error).__name__) from error
    try:
        header = json.loads(raw, object_pairs_hook=_without_duplicates)
        header.pop("__metadata__", None)
        if len(header) > MAX_TENSORS:
            raise ValueError(f"{len(header):,} tensors")
        for name, entry in header.items():
            _check_entry(name, entry)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _refused(path, str(error)) from error
    return header


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name that stands twice")
    return result


def _check_entry(name: str, entry: dict[str, Any]) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"a tensor named {name!r}")
    if entry["dtype"] not in _DTYPES:
        raise ValueError(f"dtype {entry['dtype']} in {name}")
    elements = 1
    for side in entry["shape"]:
        if not isinstance(side, int) or not 0 <= side <= MAX_ELEMENTS:
            raise ValueError(f"shape {entry['shape']} in {name}")
        elements *= side
    if elements > MAX_ELEMENTS or (0 in entry["shape"] and max(entry["shape"]) > MAX_TENSORS):
        raise ValueError(f"shape {entry['shape']} in {name}")


def _refused(path: Path, found: str) -> IntegrityError:
    return IntegrityError(
        f"not a safetensors file that a model could have: {found}",
        where=str(path),
        fix="fetch or export the model again",
    )


def read_tensors(
    path: Path, names: Iterable[str] | None = None, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """The tensors of these names (default: all), read lazily.  Raises IntegrityError."""
    _read_header(path)
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            chosen = list(file.keys() if names is None else names)
            return {name: file.get_tensor(name) for name in chosen}
    except SafetensorError as error:
        raise _refused(path, str(error)) from error


def as_fp32(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of any float type as fp32, without a copy of those that are.

    Raises IntegrityError where a tensor holds integers: quantised weights are another network.
    """
    odd = [f"{n} is {t.dtype}" for n, t in tensors.items() if not t.is_floating_point()]
    if odd:
        raise IntegrityError(
            "weights that are no floating-point numbers",
            where="\n         ".join([str(path), *_listed("not floats", odd)]),
            fix="fetch or export the model again",
        )
    return {name: tensor.float() for name, tensor in tensors.items()}


def require_match(
    path: Path, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise IntegrityError unless names and shapes agree; the error lists what does not."""
    missing = sorted(expected.keys() - found.keys())
    unexpected = sorted(found.keys() - expected.keys())
    shapes = [
        f"{name} is {found[name]}, the network's is {expected[name]}"
        for name in expected
        if name in found and found[name] != expected[name]
    ]
    problems = [
        *_listed("missing", missing),
        *_listed("unexpected", unexpected),
        *_listed("another shape", shapes),
    ]
    if problems:
        loaded = len(expected) - len(missing) - len(shapes)
        raise IntegrityError(
            f"these weights are not this network's: {loaded} of {len(expected)} tensors match",
            where="\n         ".join([str(path), *problems]),
            fix="check that config.json and the weights belong together",
        )


def _listed(label: str, entries: list[str], most: int = 6) -> list[str]:
    if not entries:
        return []
    rest = f" … and {len(entries) - most} more" if len(entries) > most else ""
    return [f"{label} ({len(entries)}): {'; '.join(entries[:most])}{rest}"]


def require_weights_of(net: nn.Module, path: Path, head: re.Pattern[str]) -> None:
    """Raise IntegrityError unless the file holds the network's tensors, a head aside."""
    expected = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    found = {name: shape for name, shape in read_shapes(path).items() if not head.fullmatch(name)}
    require_match(path, found, expected)


def read_weights_of(net: nn.Module, path: Path, device: torch.device | str) -> dict[str, Tensor]:
    """The network's tensors: weights of any float type as fp32, counters as they are.

    Raises IntegrityError.
    """
    named = net.state_dict()
    stored = read_tensors(path, named, device)
    require_finite(path, stored)
    weights = {n: t for n, t in stored.items() if named[n].is_floating_point()}
    return {**stored, **as_fp32(path, weights)}


def require_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise IntegrityError that names the tensors which hold NaN or infinity."""
    # aminmax propagates NaN and needs no temporary of the tensor's size.
    bad = [
        name
        for name, tensor in tensors.items()
        if tensor.is_floating_point()
        and tensor.numel()
        and not torch.isfinite(torch.stack(torch.aminmax(tensor))).all()
    ]
    if bad:
        raise IntegrityError(
            f"{len(bad)} of {len(tensors)} tensors hold NaN or infinity",
            where="\n         ".join([str(path), *_listed("not finite", bad)]),
            fix="fetch or export the model again",
        )
