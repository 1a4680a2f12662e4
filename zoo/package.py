"""What a push would publish: the files of a model folder, judged, and its page and record anew."""

import contextlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
from platformdirs import user_cache_path
from safetensors import safe_open

from zoo.card import Card, FileRecord, record_of
from zoo.catalog import folder_here
from zoo.entry import Signer
from zoo.errors import IntegrityError, UsageError
from zoo.files import (
    atomic_json,
    atomic_write,
    disk_errors,
    is_there,
    sweep,
    typed_path,
)
from zoo.layout import class_names_of, read_layout
from zoo.leaks import paths_in, portable, secrets_in, texts_of
from zoo.licenses import NOT_STATED, publishable
from zoo.page import Publication, readme
from zoo.scores import scores_of
from zoo.signing import SIGNATURE, sign_folder
from zoo.tensors import read_shapes, read_tensors, require_finite
from zoo.terms import Terms
from zoo.tree import MOST_FETCHED, is_fetched
from zoo.verify import CONFIG, RECORD, WEIGHTS, verify
from zoo.wire import own_token

PAGE = "README.md"
_TEXTS = {".json", ".md", ".txt", ".svg", ".png", ""}
_EXTRA = {".md", ".txt", ".svg", ".png"}
# Of a pull: what it noted, and a signature over other files than these will be.
_LEFT_OUT = {".cache", ".gitattributes", SIGNATURE}
_LICENSES = ("LICENSE", "LICENSE.txt", "LICENSE.md")
_STATED = ("mean", "std", "input_size", "interpolation", "crop_pct")


@dataclass(frozen=True, kw_only=True, slots=True)
class Package:
    """A folder that is ready to be published, and goes away afterwards."""

    folder: Path
    terms: Terms
    card: Card
    license: str
    parameters: int
    files: dict[str, FileRecord]
    signer: Signer | None = None
    """Who signed; null for nobody."""
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {
            "repository": self.terms.repository,
            "model": self.card.name,
            "digest": self.card.digest,
            "license": self.license,
            "files": {
                name: {"sha256": file.sha256, "size": file.size}
                for name, file in self.files.items()
            },
            "scores": len(self.card.scores),
            "signer": self.signer.text() if self.signer else None,
            "notes": list(self.notes),
        }

    def text(self) -> str:
        """The list of files, and what else a publisher wants to see first."""
        width = max(map(len, self.files))
        lines = [
            f"  {name:<{width}}  {file.size:>13,} bytes  sha256 {file.sha256[:12]}"
            for name, file in self.files.items()
        ]
        return "\n".join(
            [
                f"{self.card.name} → {self.terms.repository}, licence {self.license}, "
                f"{len(self.card.scores)} score{'s' * (len(self.card.scores) != 1)}",
                *lines,
                *([f"signed by {self.signer.text()}"] if self.signer else []),
                *(f"note: {note}" for note in self.notes),
            ]
        )

    def page(self) -> str:
        """The model's page, as it will be published."""
        return (self.folder / PAGE).read_text(encoding="utf-8")


def folder_of(source: str) -> Path:
    """The model folder of a run, a folder, or a name below ``models/``.  Raises UsageError."""
    given = typed_path(source)
    for folder in (given / "export", given, folder_here(source)):
        if folder and is_there(folder / CONFIG):
            if not is_there(folder / RECORD):
                raise UsageError(
                    "this model folder has no record of how it was made",
                    where=f"{folder}: no {RECORD}",
                    fix="push what zoo pretrain or zoo import wrote",
                )
            return folder
    is_run = is_there(given / "recipe.json")
    raise UsageError(
        "this run has no model yet" if is_run else "there is no run and no model folder",
        where=str(given / "export" if is_run else given),
        fix="run the same zoo pretrain command again: it continues"
        if is_run
        else "give a run (runs/NAME) or a model folder",
    )


@contextlib.contextmanager
def packed(source: str, terms: Terms) -> Iterator[Package]:
    """A run's or folder's model, ready to be published, in a folder that lasts as long.

    Raises UsageError, DiskError, and IntegrityError for whatever must not be published: each says
    which file, and where in it.
    """
    folder = folder_of(source)
    names = _require_known_files(folder)
    card = _require_true(folder)
    parameters = _require_sound_weights(folder)
    license_ = publishable(
        terms.license,
        card.licenses.get("weights", NOT_STATED),
        _made_from(card),
        acknowledged=terms.acknowledged,
    )
    scores, skipped = scores_of(card.digest, terms.results, card.scores)
    card = replace(
        card,
        scores=scores,
        licenses={**card.licenses, "weights": license_},
        recipe=portable(card.recipe),
        repository=terms.repository,
        files={},
    )
    with _workplace() as place:
        with disk_errors(place):
            card = _write(folder, place, names, card, terms, parameters)
        _require_no_leaks(place)
        signer = sign_folder(place, terms.sign) if terms.sign else None
        yield Package(
            folder=place,
            terms=terms,
            card=card,
            license=license_,
            parameters=parameters,
            files=_records(place),
            signer=signer,
            notes=(*skipped, *_notes(card, names, terms)),
        )


@contextlib.contextmanager
def _workplace() -> Iterator[Path]:
    """A folder of this process; what a killed push left behind is cleared away."""
    top = user_cache_path("tinyzoo") / "push"
    with disk_errors(top):
        top.mkdir(parents=True, exist_ok=True)
        sweep(top)
        place = top / f".tmp-{os.getpid()}-{secrets.token_hex(4)}"
        place.mkdir(mode=0o700)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _require_known_files(folder: Path) -> list[str]:
    """Names of what may be published; IntegrityError names everything that may not."""
    names, refused = [], []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name in _LEFT_OUT or name.startswith(".cache/huggingface"):
            continue
        if path.is_symlink():
            refused.append(f"{name} is a link")
        elif path.is_dir():
            continue
        elif name not in {CONFIG, WEIGHTS, RECORD} and not _is_extra(name):
            refused.append(f"{name} is no file of a model")
        else:
            names.append(name)
    if refused or len(names) > MOST_FETCHED:
        some = refused or [f"{len(names)} files; {MOST_FETCHED} are the most"]
        raise IntegrityError(
            "refused to publish what does not belong to a model",
            where=f"{folder}: " + "; ".join(some[:20]) + ("; …" if len(some) > 20 else ""),
            fix="remove it; a model may also hold LICENSE, NOTICE, .md, .txt, .png and .svg",
        )
    return names


def _is_extra(name: str) -> bool:
    path = Path(name)
    hidden = any(part.startswith(".") for part in path.parts)
    return is_fetched(name) and not hidden and path.suffix in {*_EXTRA, ""}


def _require_true(folder: Path) -> Card:
    """The record of a folder that is what it says, its page included."""
    try:
        card = verify(folder, quick=False)
    except IntegrityError as error:
        if f"{PAGE} has" in error.where:
            error.fix = "the page is written anew: restore it, and give your own words by --about"
        raise
    assert card is not None, "folder_of admits no folder without a record"
    return card


def _require_sound_weights(folder: Path) -> int:
    """How many parameters; IntegrityError for NaN, a misfit, or words hidden in the header."""
    from zoo import load

    path = folder / WEIGHTS
    load(folder)  # every name and shape, against the network
    names = read_shapes(path)
    require_finite(path, read_tensors(path))  # a head too
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    if metadata not in ({}, {"format": "pt"}):
        raise IntegrityError(
            "refused to publish what is written in the header of the weights",
            where=f"{path}: {', '.join(sorted(metadata))[:200]}",
            fix="save the weights again without metadata",
        )
    _require_timm_loads(folder)
    layout = read_layout(folder / CONFIG)
    class_names_of(layout, folder / CONFIG)  # they stand on the page
    absent = [key for key in _STATED if layout.get("pretrained_cfg", {}).get(key) is None]
    if absent:
        raise IntegrityError(
            "the preprocessing is not stated, and timm would take its own",
            where=f"{folder / CONFIG}: pretrained_cfg lacks {', '.join(absent)}",
            fix="export the model again",
        )
    return sum(math.prod(shape) for shape in names.values())


def _require_timm_loads(folder: Path) -> None:
    try:
        timm.create_model(f"local-dir:{folder.resolve()}", pretrained=True)
    except Exception as error:  # of timm's, of torch's: whatever it is, a reader would meet it
        reason = " ".join(str(error).split())[:300]
        raise IntegrityError(
            "timm does not load this model",
            where=f"{folder}: {reason}",
            fix="export or import the model again",
        ) from error


def _made_from(card: Card) -> dict[str, str]:
    """Licences of the weights that this model was made from."""
    made_from = card.ancestors
    if card.source:
        made_from[f"the file {card.source['file']}"] = card.licenses.get("weights", NOT_STATED)
    return made_from


def _write(
    folder: Path, place: Path, names: list[str], card: Card, terms: Terms, parameters: int
) -> Card:
    """Fill the folder to be published; returns the card with the digests of the files."""
    for name in set(names) - {CONFIG, RECORD, PAGE}:
        target = place / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(folder / name, target)
        except OSError:  # another file system, or one without links
            shutil.copyfile(folder / name, target)
    layout = json.loads((folder / CONFIG).read_bytes())
    layout["pretrained_cfg"]["license"] = card.licenses["weights"]
    atomic_json(place / CONFIG, layout)
    publication = Publication(
        repository=terms.repository,
        datasets=terms.datasets,
        base_model=terms.base_model or _ancestor_repository(card),
        license_file=_license_file(names),
        about=terms.about,
    )
    atomic_write(place / PAGE, readme(card, layout, parameters, publication))
    card = replace(card, files=_records(place))
    atomic_write(place / RECORD, card.to_json())
    return card


def _records(place: Path) -> dict[str, FileRecord]:
    return {
        path.relative_to(place).as_posix(): record_of(path)
        for path in sorted(place.rglob("*"))
        if path.is_file()
    }


def _ancestor_repository(card: Card) -> str | None:
    # What was pulled is named by its repository, what was made here by its recipe.
    ancestor = card.base or card.teacher
    name = ancestor.name if ancestor else ""
    return name if name.count("/") == 1 and not name.startswith((".", "/")) else None


def _license_file(names: list[str]) -> str | None:
    return next((name for name in _LICENSES if name in names), None)


def _require_no_leaks(place: Path) -> None:
    """Raise IntegrityError where a text to be published holds a secret or an absolute path."""
    token = own_token()
    found = []
    for path in sorted(place.rglob("*")):
        if not path.is_file() or path.suffix not in _TEXTS:
            continue
        name = path.relative_to(place).as_posix()
        try:
            for text in texts_of(path):
                found += [f"{name}, line {line}: {kind}" for line, kind in secrets_in(text, token)]
                found += [f"{name}, line {line}: the path {p[:80]}" for line, p in paths_in(text)]
        except ValueError as error:
            reason = "is not UTF-8" if isinstance(error, UnicodeError) else str(error)
            found.append(f"{name} {reason}")
    found = list(dict.fromkeys(found))
    if found:
        raise IntegrityError(
            "refused to publish a secret, or where things lie on this machine",
            where="; ".join(found[:10]) + ("; …" if len(found) > 10 else ""),
            fix="take it out; a secret that was ever written down should be revoked as well",
        )


def _notes(card: Card, names: list[str], terms: Terms) -> Iterator[str]:
    if not _license_file(names):
        yield "no LICENSE file beside the weights: people ask for one"
    if not card.scores:
        yield f"no result of this model below {terms.results}: the page says 'Not measured'"
    if not terms.datasets and not card.source:
        yield "no --dataset: the page names the data folder only"
