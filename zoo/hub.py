"""From a model's name to its folder on this machine."""

from pathlib import Path, PurePosixPath

from huggingface_hub import hf_hub_download
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]  # httpx's or httpx2's, as it uses
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from zoo.card import read_card
from zoo.catalog import folder_here, resolve
from zoo.errors import IntegrityError, NetworkError, UsageError
from zoo.files import disk_errors, safe_join
from zoo.folder import CONFIG, RECORD, WEIGHTS

HUB = "hf-hub:"
FETCHED = {".json", ".safetensors", ".md", ".txt"}
MOST_FILES = 100


def locate(source: str) -> Path:
    """The folder that holds ``config.json`` and ``model.safetensors`` of a model.

    source: a folder, a name of ``zoo import`` (``models/NAME`` here), a name of the catalog
    (``mae-vit-l[@revision]``), ``hf-hub:org/name[@revision]``, ``org/name[@revision]``, or a name
    that timm has weights for on the Hub (``vit_large_patch16_224.mae``); whatever of these there is
    first.  Hub files are kept in the standard Hugging Face cache.  Raises UsageError, NetworkError,
    IntegrityError, DiskError.
    """
    folder = Path(source).expanduser()
    if (folder / CONFIG).is_file():
        return folder
    if folder.exists():
        raise UsageError(
            "this is not a model folder: it has no config.json",
            where=str(folder),
            fix="give an export/ folder of a run, or a name on the Hub",
        )
    if imported := folder_here(source):
        return imported
    if pin := resolve(source):
        return _download(pin.source)
    repository = source.removeprefix(HUB) if source.startswith(HUB) else _timm_repository(source)
    if repository is None:
        raise UsageError(
            f"no model of this name: {source!r}",
            where="neither a folder here, nor in the catalog, nor org/name on the Hub, nor a timm "
            "name with weights",
            fix="make the folder first (its recipe's docstring has the command), or see zoo list",
        )
    return _download(repository)


def _timm_repository(name: str) -> str | None:
    import timm  # slow: only where a name has to be looked up

    if name.count("/") == 1 and not name.startswith((".", "/", "runs/")):
        return name
    if "/" in name or not timm.is_model(name.split(".")[0]):
        return None
    try:
        return timm.get_pretrained_cfg(name).hf_hub_id  # type: ignore[union-attr]
    except RuntimeError:  # timm knows the network, and no weights by this tag
        return None


def _download(repository: str) -> Path:
    name, _, revision = repository.partition("@")
    try:
        with disk_errors(Path(HF_HUB_CACHE)):
            return _fetch_all(name, revision or None)
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise UsageError(
            f"the Hub has no model {repository!r}, or it is private",
            where=_first_line(error),
            fix="check the name; for a private or gated model run `hf auth login` first",
        ) from error
    except LocalEntryNotFoundError as error:
        raise NetworkError(
            f"{repository} is not in the cache and the Hub cannot be reached",
            where=_first_line(error),
            fix="run the same command again when online",
        ) from error
    except EntryNotFoundError as error:
        raise UsageError(
            f"{repository} has no safetensors weights in timm's layout",
            where=_first_line(error),
            fix="choose a repository with config.json and model.safetensors",
        ) from error
    except (HTTPError, OSError) as error:
        raise NetworkError(
            f"the Hub did not deliver {repository}",
            where=_first_line(error),
            fix="run the same command again",
        ) from error


def _fetch_all(name: str, revision: str | None) -> Path:
    folder = Path(hf_hub_download(name, CONFIG, revision=revision)).parent
    commit = folder.name  # all files from one, though a branch moves
    try:
        hf_hub_download(name, RECORD, revision=commit)
    except EntryNotFoundError:  # not made by tinyzoo
        files = {WEIGHTS}
    else:
        files = _recorded(folder) | {WEIGHTS}
    for file in sorted(files):
        hf_hub_download(name, file, revision=commit)
    return folder


def _recorded(folder: Path) -> set[str]:
    """The files that a fetched record speaks of: data only, never code or a pickle."""
    names = set(read_card(folder / RECORD).files)
    refused = sorted(name for name in names if PurePosixPath(name).suffix not in FETCHED)
    if refused or len(names) > MOST_FILES:
        raise IntegrityError(
            f"the record speaks of {len(names)} files, among them {refused[:3]}",
            where=f"{folder / RECORD}: files",
            fix="do not use this source; report it to whoever publishes it",
        )
    for name in names:
        safe_join(folder, name, follow_links=True)
    return names


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
