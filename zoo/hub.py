"""From a model's name to its folder on this machine."""

from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from zoo.errors import NetworkError, UsageError
from zoo.folder import CONFIG, WEIGHTS

HUB = "hf-hub:"


def locate(source: str) -> Path:
    """The folder that holds ``config.json`` and ``model.safetensors`` of a model.

    source: a folder, ``hf-hub:org/name[@revision]``, ``org/name[@revision]``, or a name that timm
    has weights for on the Hub (``vit_large_patch16_224.mae``).  Hub files are kept in the standard
    Hugging Face cache.  Raises UsageError, NetworkError.
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
    repository = source.removeprefix(HUB) if source.startswith(HUB) else _timm_repository(source)
    if repository is None:
        raise UsageError(
            f"no model of this name: {source!r}",
            where="neither a folder here, nor org/name on the Hub, nor a timm name with weights",
            fix="make the folder first (its recipe's docstring has the command), or check the name",
        )
    return _download(repository)


def _timm_repository(name: str) -> str | None:
    import timm  # slow: only where a name has to be looked up

    if name.count("/") == 1 and not name.startswith((".", "/", "runs/")):
        return name
    cfg = timm.get_pretrained_cfg(name) if "/" not in name and _known(name) else None
    return cfg.hf_hub_id if cfg else None


def _known(name: str) -> bool:
    import timm

    return timm.is_model(name.split(".")[0])


def _download(repository: str) -> Path:
    name, _, revision = repository.partition("@")
    try:
        paths = [
            Path(hf_hub_download(name, file, revision=revision or None))
            for file in (CONFIG, WEIGHTS)
        ]
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise UsageError(
            f"the Hub has no model {repository!r}, or it is private",
            where=str(error).splitlines()[0],
            fix="check the name; for a private or gated model run `hf auth login` first",
        ) from error
    except LocalEntryNotFoundError as error:
        raise NetworkError(
            f"{repository} is not in the cache and the Hub cannot be reached",
            where=str(error).splitlines()[0],
            fix="run the same command again when online",
        ) from error
    except EntryNotFoundError as error:
        raise UsageError(
            f"{repository} has no safetensors weights in timm's layout",
            where=str(error).splitlines()[0],
            fix="choose a repository with config.json and model.safetensors",
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise NetworkError(
            f"the Hub did not deliver {repository}",
            where=str(error).splitlines()[0],
            fix="run the same command again",
        ) from error
    return paths[-1].parent
