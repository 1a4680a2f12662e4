"""What every protocol has: a name, a version, and a digest of all that it pins.

A protocol never changes: another rule is another version.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Pinned:
    """One benchmark, one version."""

    name: str
    version: int = 1
    about: str
    """In words; the only field that the digest leaves out."""

    @property
    def id(self) -> str:
        """Name and version, such as ``in1k-val@1``."""
        return f"{self.name}@{self.version}"

    @property
    def digest(self) -> str:
        """sha256 of all that the protocol pins, as canonical JSON."""
        text = json.dumps(self.pinned(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def pinned(self) -> dict[str, Any]:
        """Every rule; a kind of protocol adds what the names in them mean."""
        return {name: value for name, value in asdict(self).items() if name != "about"}
