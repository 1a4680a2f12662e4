"""What a publisher says of a model, beside what its folder says."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zoo.errors import UsageError
from zoo.licenses import KNOWN
from zoo.settings import is_namespace, is_repository

_LICENSE = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+-]{0,59}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """The publisher's words; ``terms_of`` checks them."""

    repository: str
    """``org/name``"""
    license: str | None = None
    """Null for what the record states."""
    acknowledged: bool = False
    """The publisher holds the rights in what the model was made from, or has leave."""
    datasets: tuple[str, ...] = ()
    """Ids of the Hub."""
    base_model: str | None = None
    about: str = ""
    """Markdown for the page."""
    results: Path = Path("results")
    """Where ``zoo eval`` wrote."""
    sign: Path | None = None
    """The private key to sign with."""


def terms_of(
    repository: str,
    *,
    license_: str | None = None,
    acknowledged: bool = False,
    datasets: Sequence[str] = (),
    base_model: str | None = None,
    about: Path | None = None,
    results: Path = Path("results"),
    sign: Path | None = None,
) -> Terms:
    """The publisher's words, checked.  about: a Markdown file.  Raises UsageError."""
    for text, what in [(repository, "--repo"), (base_model, "--base-model")]:
        if text is not None and not is_repository(text):
            raise UsageError(
                f"the Hub can have no repository {text[:120]!r}",
                where=what,
                fix="give ORG/NAME: letters, digits, dots, dashes, underscores",
            )
    for text in datasets:
        if not all(map(is_namespace, text.split("/"))) or text.count("/") > 1:
            raise UsageError(
                f"the Hub can have no data set {text[:120]!r}",
                where="--dataset",
                fix="give ORG/NAME, such as ILSVRC/imagenet-1k",
            )
    if license_ is not None and not _LICENSE.fullmatch(license_):
        raise UsageError(
            f"not a licence's name: {license_[:120]!r}",
            where="--license",
            fix=f"one the Hub lists, such as apache-2.0 or cc-by-nc-4.0 ({len(KNOWN)} are known "
            "here), or a short name and a LICENSE file in the folder",
        )
    try:
        words = about.read_text(encoding="utf-8") if about else ""
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise UsageError(
            f"--about cannot be read: {reason}", where=str(about), fix="give a Markdown file"
        ) from error
    return Terms(
        repository=repository,
        license=license_,
        acknowledged=acknowledged,
        datasets=tuple(datasets),
        base_model=base_model,
        about=words,
        results=results,
        sign=sign,
    )
