"""Features that are computed once and kept: a folder of small ``.npy`` files, memory-mapped.

A shard holds the features of ``SHARD`` images and stands under its final name only when it is
whole; the name carries the checksum of its bytes.  So an extraction that was killed continues where
it stopped, several processes and ranks may fill one folder, and a damaged shard is made anew.

N images · D width of a feature
"""

import hashlib
import io
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from platformdirs import user_cache_dir
from torch import Tensor

from eval.backbone import Backbone, Pooled
from eval.crops import Images, images_of
from pretrain.distributed import World
from zoo.errors import DataError, IntegrityError
from zoo.files import atomic_json, atomic_write, require_space, sweep

EXTRACTION = 1
"""Raise it with any change of the code that changes a feature: what was kept before is not used."""
SHARD = 2048
"""Images in a shard."""
BATCH = 64
"""Images in a forward pass.  Part of the features: another batch gives other last bits."""

_STORED = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}
# numpy has no bfloat16: its bits are kept.
_DEAD_SECONDS = 600
_SHARD_NAME = re.compile(r"(\d{6,})-[0-9a-f]{8}\.npy")


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureKey:
    """All that features depend on."""

    model_digest: str
    data_fingerprint: str
    transform: dict[str, Any]
    dtype: str
    pooling: Pooled
    place: str
    """The block or stage that is read."""
    device: str
    """Of which kind: another one rounds otherwise."""
    shard: int
    extraction: int

    @property
    def digest(self) -> str:
        """Name of the folder."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def key_of(backbone: Backbone, fingerprint: str, pooled: Pooled) -> FeatureKey:
    return FeatureKey(
        model_digest=backbone.digest,
        data_fingerprint=fingerprint,
        transform=asdict(backbone.preprocess),
        dtype=backbone.dtype,
        pooling=pooled,
        place=backbone.place,
        device=backbone.device.type,
        shard=SHARD,
        extraction=EXTRACTION,
    )


def default_cache() -> Path:
    """The user's own cache folder, the system's place for such things."""
    return Path(user_cache_dir("tinyzoo"))


@dataclass(frozen=True, kw_only=True)
class Features:
    """(N, D) on disk.  What was read is given back: memory holds a few shards at most."""

    shards: tuple[Path, ...]
    count: int
    """N."""
    width: int
    """D."""
    dtype: str
    rows: int
    """In each shard but the last."""

    def __len__(self) -> int:
        return self.count

    def blocks(self, size: int) -> Iterator[Tensor]:
        """All of them in order, (size, D) at a time and the rest; of their own dtype, CPU."""
        for start in range(0, self.count, size):
            yield self.take(np.arange(start, min(start + size, self.count)))

    def take(self, places: np.ndarray) -> Tensor:
        """(len(places), D) of these images, in their order; of their own dtype, on the CPU."""
        found = np.empty((len(places), self.width), _STORED[self.dtype])
        shard_of, row_of = np.divmod(places, self.rows)
        for number in np.unique(shard_of):
            here = np.flatnonzero(shard_of == number)
            # Opened and closed again: what is mapped and was touched counts as our memory.
            found[here] = np.load(self.shards[number], mmap_mode="r")[row_of[here]]
        tensor = torch.from_numpy(found)
        return tensor.view(torch.bfloat16) if self.dtype == "bfloat16" else tensor


def cached_features(
    backbone: Backbone,
    images: Images,
    fingerprint: str,
    pooled: Pooled,
    *,
    cache: Path,
    world: World,
    workers: int,
) -> Features:
    """The features of all images, from the cache or computed into it; the same on every rank.

    Rank r computes shards r, r + size, …: none twice, none padded.  The cache is one that every
    rank sees.  Raises DataError with the list of images that cannot be read, IntegrityError for
    features that are not finite, DiskError.
    """
    key = key_of(backbone, fingerprint, pooled)
    folder = cache / "features" / key.digest
    width = backbone.width * len(pooled.split("+"))
    ranges = [range(s, min(s + SHARD, len(images))) for s in range(0, len(images), SHARD)]
    if world.is_main:
        _prepare(folder, key, ranges, width)
    world.barrier()
    held = _held(folder)
    mine = [
        number
        for number in range(world.rank, len(ranges), world.size)
        if not _keep_whole(
            held.get(number, []), number, (len(ranges[number]), width), backbone.dtype
        )
    ]
    _extract(backbone, images, pooled, folder, mine, ranges, workers=workers)
    world.barrier()
    held = _held(folder)
    if missing := len(ranges) - len(held):
        raise DataError(
            f"{missing} of {len(ranges)} shards of features are not where they were written",
            where=f"{folder}, rank {world.rank}",
            fix="give a cache folder that every rank sees (--cache), and leave it alone meanwhile",
        )
    return Features(
        shards=tuple(held[number][0] for number in range(len(ranges))),
        count=len(images),
        width=width,
        dtype=backbone.dtype,
        rows=SHARD,
    )


def _prepare(folder: Path, key: FeatureKey, ranges: Sequence[range], width: int) -> None:
    sweep(folder, older_seconds=_DEAD_SECONDS)  # a younger one may be another machine's
    atomic_json(folder / "key.json", asdict(key))
    size = np.dtype(_STORED[key.dtype]).itemsize
    held = _held(folder)
    absent = [images for number, images in enumerate(ranges) if number not in held]
    require_space(folder, sum(len(images) * width * size + 128 for images in absent))


def _held(folder: Path) -> dict[int, list[Path]]:
    """The shards that are there, by number.

    Two writers whose machines round otherwise leave two of one number: the first by name counts.
    """
    held: dict[int, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if match := _SHARD_NAME.fullmatch(path.name):
            held.setdefault(int(match[1]), []).append(path)
    return held


def _keep_whole(paths: list[Path], number: int, shape: tuple[int, int], dtype: str) -> bool:
    """Whether one of a shard's files has the bytes that were written; damaged ones are removed."""
    found = False
    for path in paths:
        try:
            data = path.read_bytes()
            whole = path.name == _name(number, data) and _unpack(data) == (shape, _STORED[dtype])
        except (OSError, ValueError):
            whole = False
        if not whole:
            path.unlink(missing_ok=True)
        found |= whole
    return found


def _name(number: int, data: bytes) -> str:
    # The number is part of it: a shard in another's place is a damaged one.
    return f"{number:06}-{zlib.crc32(data, number):08x}.npy"


def _unpack(data: bytes) -> tuple[tuple[int, ...], type]:
    array = np.load(io.BytesIO(data), allow_pickle=False)
    return array.shape, array.dtype.type


def _extract(
    backbone: Backbone,
    images: Images,
    pooled: Pooled,
    folder: Path,
    numbers: Sequence[int],
    ranges: Sequence[range],
    *,
    workers: int,
) -> None:
    """Compute and write these shards."""
    batches = images_of(
        images,
        backbone.preprocess,
        batch=BATCH,
        workers=workers,
        ranges=[ranges[number] for number in numbers],
    )
    for number in numbers:
        parts: list[Tensor] = []
        while sum(map(len, parts)) < len(ranges[number]):
            batch = next(batches, None)
            assert batch is not None, "images_of gives every image, or raises"
            parts.append(backbone.pool(batch.to(backbone.device) / 255, pooled).cpu())
        features = torch.cat(parts).to(getattr(torch, backbone.dtype))
        _require_finite(features, images, ranges[number])
        _write(folder, number, features)
    next(batches, None)  # what could not be read is raised at the end


def _require_finite(features: Tensor, images: Images, places: range) -> None:
    bad = torch.nonzero(~torch.isfinite(features).all(1))[:, 0].tolist()
    if bad:
        raise IntegrityError(
            f"features that are not finite, of {len(bad)} images at least",
            where=f"image {places[bad[0]]} of {len(images)}",
            fix="repeat with --dtype float32; if it stays, the model is damaged",
        )


def _write(folder: Path, number: int, features: Tensor) -> None:
    bits = features.view(torch.uint16) if features.dtype == torch.bfloat16 else features
    buffer = io.BytesIO()
    np.save(buffer, bits.contiguous().numpy(), allow_pickle=False)
    data = buffer.getvalue()
    atomic_write(folder / _name(number, data), data)
