"""What the catalog says of a model: typed, strict, and checked before any of it is believed.

A user's catalog has the same form, so nothing here may lead out of a folder, hide a character in a
terminal, or name a repository that cannot be.
"""

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal, NamedTuple, NoReturn

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter

from zoo.files import is_plain_name
from zoo.settings import is_repository

STATES = ("hosted", "importable", "recipe")


class Metric(NamedTuple):
    """How a figure is to be read."""

    title: str
    unit: str
    low_is_good: bool = False


METRICS = {
    "top1": Metric("ImageNet-1K top-1, fine-tuned", "%"),
    "ade20k": Metric("ADE20K mIoU, UPerNet", "%"),
    "a": Metric("ImageNet-A top-1", "%"),
    "r": Metric("ImageNet-R top-1", "%"),
    "c": Metric("ImageNet-C error, unnormalised", "%", low_is_good=True),
    "mce": Metric("ImageNet-C mCE, against AlexNet", "", low_is_good=True),
    "linear": Metric("ImageNet-1K top-1, linear probe", "%"),
    "knn": Metric("ImageNet-1K top-1, k-NN", "%"),
}

_STRICT = ConfigDict(extra="forbid", strict=True)
_PEM = re.compile(r"-----BEGIN PUBLIC KEY-----([\w+/=\s]+)-----END PUBLIC KEY-----\s*", re.ASCII)
# How the DER form of a P-256 key begins; the point follows, 64 bytes.
_P256 = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004")


def _printable(text: str) -> str:
    if not text.isprintable():  # escape sequences, line breaks, marks that turn the text around
        raise ValueError("holds characters that cannot be printed")
    return text


def _plain(name: str) -> str:
    if not is_plain_name(name):
        raise ValueError("not a plain name: letters, digits, dots, dashes and underscores")
    return name


def _repository(text: str) -> str:
    if not is_repository(text):
        raise ValueError("not a repository: ORG/NAME")
    return text


def _file_names(names: dict[str, Any]) -> dict[str, Any]:
    if odd := [name for name in names if not all(map(is_plain_name, name.split("/")))]:
        raise ValueError(f"not a file of a repository: {odd[0][:80]!r}")
    return names


def _key_bytes(pem: str) -> bytes:
    """The DER form of a public key.  By its shape alone: what checks the point is slow to load."""
    found = _PEM.fullmatch(pem)
    try:
        der = base64.b64decode("".join(found[1].split()), validate=True) if found else b""
    except ValueError:
        der = b""
    if not (der.startswith(_P256) and len(der) == len(_P256) + 64):
        raise ValueError("not the PEM text of a public EC key on the curve P-256")
    return der


def _public_key(pem: str) -> str:
    text = base64.encodebytes(_key_bytes(pem)).decode().replace("\n", "")
    lines = [text[start : start + 64] for start in range(0, len(text), 64)]
    return "\n".join(["-----BEGIN PUBLIC KEY-----", *lines, "-----END PUBLIC KEY-----", ""])


Name = Annotated[str, AfterValidator(_plain)]
Text = Annotated[str, Field(min_length=1, max_length=400), AfterValidator(_printable)]
_Size = Annotated[int, Field(ge=1, le=8192)]
_Hex40 = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
_Hex64 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True, kw_only=True, slots=True)
class ViT:
    """Sizes of a plain ViT."""

    __pydantic_config__ = _STRICT

    width: _Size
    depth: _Size
    heads: _Size
    """Part of the model: weight shapes cannot tell head counts apart."""
    patch: _Size = 16
    """Side of a patch, in pixels."""
    image_size: _Size = 224
    """Side of the input, in pixels."""

    def text(self) -> str:
        """The sizes in one line."""
        return (
            f"ViT, width {self.width}, depth {self.depth}, {self.heads} heads, "
            f"patches of {self.patch} px, input {self.image_size} px"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Convnet:
    """A convolutional network that timm knows."""

    __pydantic_config__ = _STRICT

    architecture: Name
    """timm's name, without a weights tag."""
    image_size: _Size = 224
    """Side of the input, in pixels."""

    def text(self) -> str:
        """The network in one line."""
        return f"convnet, timm's {self.architecture}, input {self.image_size} px"


@dataclass(frozen=True, kw_only=True, slots=True)
class Licenses:
    """Of a model alone; an ancestor's stand in the ancestor's own entry."""

    __pydantic_config__ = _STRICT

    code: Text
    """Of the code that makes it."""
    weights: Text | None = None
    """Of the published weights; null where none are published."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One published or measured number."""

    __pydantic_config__ = _STRICT

    metric: Literal["top1", "ade20k", "a", "r", "c", "mce", "linear", "knn"]
    value: Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)]
    """In the metric's unit."""
    source: Text
    """The paper and its table; of our own figures, the protocol's id."""
    note: Text | None = None
    """What sets it apart from the others of its metric."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FilePin:
    """What a file of a repository must be."""

    __pydantic_config__ = _STRICT

    sha256: _Hex64
    size: Annotated[int, Field(ge=0)] | None = None
    """In bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Signer:
    """Who must have signed a model: the holder of a key, or of a sigstore identity."""

    __pydantic_config__ = _STRICT

    public_key: Annotated[str, Field(max_length=1000), AfterValidator(_public_key)] | None = None
    """PEM text of an EC key on the curve P-256; the text, never a path to it."""
    identity: Text | None = None
    """As in the certificate: an e-mail address, or the URI of a workflow."""
    issuer: Text | None = None
    """Who vouched for the identity: the address of an OpenID Connect provider."""

    def __post_init__(self) -> None:
        key, identity = self.public_key is not None, self.identity is not None
        if key == identity or identity != (self.issuer is not None):
            raise ValueError("a signer is a public_key, or an identity with its issuer")

    def text(self) -> str:
        """The signer in a few words; of a key the sha256 of its DER form, shortened."""
        if self.public_key is None:
            return f"{self.identity} (by {self.issuer})"
        return f"the key {hashlib.sha256(_key_bytes(self.public_key)).hexdigest()[:16]}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Hosted:
    """Where timm-ready weights are.  Without a commit the model is *not pinned*."""

    __pydantic_config__ = _STRICT

    repository: Annotated[str, Field(max_length=200), AfterValidator(_repository)]
    """ORG/NAME on the Hub."""
    commit: _Hex40 | None = None
    files: Annotated[dict[str, FilePin], AfterValidator(_file_names)] = field(default_factory=dict)
    """Of that commit."""
    signer: Signer | None = None
    """Of every commit: without this one's signature over all files the model is refused."""

    def __post_init__(self) -> None:
        if self.files and not self.commit:
            raise ValueError("files are pinned without the commit that holds them")

    def text(self) -> str:
        """The repository and how firmly it is pinned."""
        known = f"sha256 of {len(self.files)} files" if self.files else "no sha256 of its files"
        place = f" at {self.commit[:12]} ({known})" if self.commit else " (not pinned)"
        signed = f", signed by {self.signer.text()}" if self.signer else ""
        return f"{self.repository}{place}{signed}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Importable:
    """An official file that ``zoo import`` makes a model folder of."""

    __pydantic_config__ = _STRICT

    files: Annotated[tuple[Name, ...], Field(min_length=1)]
    """As the publisher calls them; any one will do."""
    publisher: Text
    becomes: Text
    """What the model folder then holds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A model of the catalog."""

    __pydantic_config__ = _STRICT

    name: Name
    title: Text
    method: Name
    paper: Text
    vit: ViT | None = None
    convnet: Convnet | None = None
    parameters: Annotated[int, Field(ge=1, le=10**12)]
    """Of the network without a classifier; fixed positions count."""
    gflops: Annotated[float, Field(gt=0, le=10**6, allow_inf_nan=False)] | None = None
    """10⁹ operations for an image at the input size: two for each multiply-add; matrix products,
    attention's and convolutions only."""
    teacher: Name | None = None
    """The entry that it learned from."""
    licenses: Licenses
    recipe: Name | None = None
    """The shipped recipe that makes it."""
    hosted: Hosted | None = None
    importable: Importable | None = None
    figures: tuple[Figure, ...] = ()
    """As published; the first of a metric is the one to compare."""
    measured: tuple[Figure, ...] = ()
    """Our own."""
    note: Text | None = None

    def __post_init__(self) -> None:
        if (self.vit is None) == (self.convnet is None):
            raise ValueError("a model is one of vit and convnet")
        if not (self.hosted or self.importable or self.recipe):
            raise ValueError("a model has at least one of hosted, importable and recipe")

    @property
    def network(self) -> ViT | Convnet:
        found = self.vit or self.convnet
        assert found is not None, "__post_init__ admits no other"
        return found

    @property
    def state(self) -> Literal["hosted", "importable", "recipe"]:
        """The shortest way to it: download, convert an official file, or train."""
        if self.hosted:
            return "hosted"
        return "importable" if self.importable else "recipe"

    @property
    def is_ours(self) -> bool:
        """Whether it is for this project's users to publish: made here, hosted nowhere yet."""
        return self.recipe is not None and self.hosted is None

    def headline(self, metric: str) -> Figure | None:
        """The figure to compare: the first published one, or else our own."""
        return next((f for f in (*self.figures, *self.measured) if f.metric == metric), None)


_ENTRY = TypeAdapter(Entry)


def parse_entry(name: str, table: Mapping[str, Any]) -> Entry:
    """The entry that a table of a catalog holds.

    Raises ValueError; of pydantic's kind where one key is to blame.
    """
    # By way of JSON, whose arrays are tuples to a strict check; NaN is refused field by field.
    text = json.dumps({**table, "name": name}, default=_no_such_value)
    return _ENTRY.validate_json(text)


def signer_of_key(pem: str) -> Signer:
    """The signer that a public key stands for.  Raises ValueError: not PEM, or not P-256."""
    return Signer(public_key=_public_key(pem))


def _no_such_value(value: object) -> NoReturn:
    raise ValueError(f"no key takes a {type(value).__name__}")  # TOML has dates and times


def as_record(entry: Entry) -> dict[str, Any]:
    """An entry as its table in a catalog: plain values, absent where there is nothing to say."""
    record = _plain_values(asdict(entry))
    del record["name"]  # it is the table's own
    return record


def _plain_values(value: Any) -> Any:
    if isinstance(value, dict):
        stated = {key: _plain_values(part) for key, part in value.items()}
        return {key: part for key, part in stated.items() if part not in (None, {}, [])}
    return [_plain_values(part) for part in value] if isinstance(value, tuple) else value
