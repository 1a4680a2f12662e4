"""From a model's name to its folder on this machine."""

from pathlib import Path
from typing import Any

from zoo.catalog import Pin, folder_here, resolve
from zoo.errors import UsageError
from zoo.files import is_there, typed_path
from zoo.pull import Pulled, pull
from zoo.verify import CONFIG

HUB = "hf-hub:"
LOCAL = (".", "/", "runs/", "models/")
"""How a name begins that means a folder, also where there is none."""


def locate(source: str) -> Path:
    """The folder that holds ``config.json`` and ``model.safetensors`` of a model.

    source: a model folder, a run with its ``export/``, a name of ``zoo import`` (``models/NAME``
    here), a name of the catalog (``mae-vit-l[@revision]``), ``hf-hub:org/name[@revision]``,
    ``org/name[@revision]``, or a name that timm has weights for on the Hub
    (``vit_large_patch16_224.mae``); whatever of these there is first.  Hub files are kept in the
    standard Hugging Face cache.  Raises UsageError, NetworkError, IntegrityError, DiskError.
    """
    folder = typed_path(source)
    for place in (folder, folder / "export"):
        if is_there(place / CONFIG):
            return place
    if is_there(folder):
        raise UsageError(
            "this is not a model folder: it has no config.json",
            where=str(folder),
            fix="give a run that has its export/, a model folder, or a name on the Hub",
        )
    return folder_here(source) or pull_model(source, whole=False).folder


def pull_model(source: str, **options: Any) -> Pulled:
    """``zoo.pull.pull`` for any spelling of a name: the catalog's, ``org/name``, or timm's.

    options: as there.  Raises UsageError, NetworkError, IntegrityError, DiskError.
    """
    pin = pin_of(source)
    if not pin.files:
        return pull(pin.source, signer=pin.signer, **options)
    return pull(pin.repository, commit=pin.revision, pins=pin.sha256s, signer=pin.signer, **options)


def pin_of(source: str) -> Pin:
    """Where on the Hub any spelling of a name leads, with what the catalog knows of its bytes.

    Raises UsageError.
    """
    if pin := resolve(source):
        return pin
    repository = source.removeprefix(HUB) if source.startswith(HUB) else _timm_repository(source)
    if repository is None:
        raise UsageError(
            f"no model of this name: {source!r}",
            where="neither a folder here, nor in the catalog, nor org/name on the Hub, nor a timm "
            "name with weights",
            fix="make the folder first (its recipe's docstring has the command), or see zoo list",
        )
    return Pin(repository, None, {})  # with the revision as it was written: the pull judges it


def _timm_repository(name: str) -> str | None:
    if name.partition("@")[0].count("/") == 1 and not name.startswith(LOCAL):
        return name
    if "/" in name:
        return None
    import timm  # slow: only where a name has to be looked up

    if not timm.is_model(name.split(".")[0]):
        return None
    try:
        return timm.get_pretrained_cfg(name).hf_hub_id  # type: ignore[union-attr]
    except RuntimeError:  # timm knows the network, and no weights by this tag
        return None
