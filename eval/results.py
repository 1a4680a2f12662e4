"""One result: a value with all that it depends on, in a file of its own.

Tables are made from these files.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from zoo.files import atomic_json


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """A score, its protocol and its evidence."""

    protocol: str
    """Name and version, such as ``knn@1``."""
    model: str
    model_digest: str
    metric: str
    value: float
    """Accuracies in percent."""
    standard_error: float
    """Of ``value``, over the samples."""
    samples: int
    """How many were scored: all of them, none twice."""
    transform: dict[str, Any]
    """Preprocessing as resolved."""
    settings: dict[str, Any]
    """The protocol's own."""
    data: str
    """Name of the data folder, without its path: what may be published."""
    data_fingerprint: str
    dtype: str
    seconds: float
    """Wall clock of the evaluation, over all its starts."""
    code_version: str
    protocol_digest: str = ""
    """sha256 of all that the protocol pins."""
    complete: bool = True
    """Whether ``samples`` are all that the protocol asks for; ``data`` says what is missing."""
    seed: int = 0
    """Of what the protocol draws; most draw nothing."""
    ranks: int = 1
    predictions: str = ""
    """Name of the file beside this one that holds what each sample was taken for."""
    environment: dict[str, str] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    """What was measured beside the value."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def line(self) -> str:
        settings = ", ".join(map(_setting, self.settings.items()))
        return (
            f"{self.model}  {self.protocol}{f' ({settings})' if settings else ''}  "
            f"{self.metric} {self.value:.2f} ± {self.standard_error:.2f} %  n = {self.samples:,}"
            + ("" if self.dtype == "float32" else f"  {self.dtype}")
            + ("" if self.complete else f"  {self.data}")
        )

    def save(self, folder: Path) -> Path:
        """Write ``folder/<stem>.json``.

        The same evaluation again replaces its file.  Raises DiskError.
        """
        path = folder / f"{self.stem}.json"
        atomic_json(path, self.as_dict())
        return path

    @property
    def stem(self) -> str:
        """Protocol and a digest of all that the value depends on: the file's name."""
        parts = [self.model_digest, self.protocol, self.transform, self.settings]
        text = json.dumps([*parts, self.data_fingerprint, self.dtype, self.seed], sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        return f"{self.protocol.replace('@', '-v')}-{key}"


def _setting(item: tuple[str, Any]) -> str:
    return f"{item[0]} {item[1]}"
