"""Every protocol that gives a number, of whatever kind: which exist, and which is the newest.

Tables ask here whether a result's protocol has moved on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

from eval import diversity_protocol as diversity
from eval.probe_protocols import PROBE_PROTOCOLS
from eval.protocols import PROTOCOLS
from eval.segmentation.protocols import SEG_PROTOCOLS


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmark:
    """What a table knows of a protocol."""

    id: str
    """Name and version, such as ``in1k-val@1``."""
    about: str
    digest: str
    """sha256 of all that it pins."""


@cache
def benchmarks() -> Mapping[str, Benchmark]:
    """All of them, by name and version."""
    known = [*PROTOCOLS.values(), *PROBE_PROTOCOLS.values(), *SEG_PROTOCOLS.values()]
    found = {p.id: Benchmark(id=p.id, about=p.about, digest=p.digest) for p in known}
    about = "How little the tokens of an image resemble one another"
    tokens = Benchmark(id=diversity.PROTOCOL, about=about, digest=diversity.protocol_digest())
    return MappingProxyType({**found, tokens.id: tokens})


def newest(name: str) -> Benchmark | None:
    """The newest version of a protocol, by its name without a version; None for an unknown one."""
    of_name = [b for b in benchmarks().values() if b.id.partition("@")[0] == name]
    return max(of_name, key=lambda b: int(b.id.partition("@")[2]), default=None)
