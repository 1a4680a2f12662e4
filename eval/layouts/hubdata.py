"""``hf:ORG/NAME[@REVISION][#SPLIT]``: a data set on the Hub, its Parquet files fetched.

Only the files of one split are fetched, by the Hub's own client, into its cache.  Nothing of the
repository but Parquet files is read: no script, no configuration, no pickle.
"""

import glob
import re
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]  # httpx's or httpx2's, as it uses
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from eval.layouts.parquet import require_datasets
from eval.layouts.shards import choose_shards
from zoo.client import progress_on_terminals
from zoo.errors import NetworkError, UsageError, ZooError
from zoo.files import disk_errors
from zoo.settings import is_repository

HUB = "hf:"
_SOURCE = re.compile(
    r"hf:(?P<repository>[^@#]+)(?:@(?P<revision>[\w./-]+))?(?:#(?P<split>[\w./-]+))?", re.ASCII
)


class HubData(NamedTuple):
    """A data set as it was asked for."""

    repository: str
    revision: str | None
    split: str
    """Empty for the validation split."""


def is_hub_data(data: Path) -> bool:
    """Whether this is the name of a data set on the Hub, and no place on this machine."""
    return str(data).startswith(HUB)


def parse_hub_data(data: Path) -> HubData:
    """What ``hf:ORG/NAME[@REVISION][#SPLIT]`` says.  Raises UsageError."""
    match = _SOURCE.fullmatch(str(data))
    parts = f"{match['revision'] or ''}/{match['split'] or ''}".split("/") if match else []
    if match is None or not is_repository(match["repository"]) or {".", ".."} & set(parts):
        raise UsageError(
            "this is no data set on the Hub",
            where=str(data)[:200],
            fix="give hf:ORG/NAME, hf:ORG/NAME@REVISION or hf:ORG/NAME#SPLIT, such as "
            "hf:ILSVRC/imagenet-1k#validation",
        )
    return HubData(match["repository"], match["revision"], match["split"] or "")


def fetch_parquet(data: Path, benchmark: str) -> list[Path]:
    """The Parquet files of the split, in the Hub client's cache; offline, what is there already.

    Raises UsageError (no such set, no right to it, no Parquet files, no such split), NetworkError,
    DataError (shards are missing), DiskError.
    """
    asked = parse_hub_data(data)
    require_datasets()
    with disk_errors(Path(HF_HUB_CACHE)), progress_on_terminals():
        try:
            return _fetch(asked, benchmark, str(data))
        except OfflineModeIsEnabled:
            return _fetched_before(asked, benchmark, str(data))
        except (HfHubHTTPError, HTTPError, LocalEntryNotFoundError, EntryNotFoundError) as error:
            raise _meaning(error, str(data)) from None  # its text may hold signed addresses
        except (RuntimeError, OSError) as error:  # of hf_xet; a file of another length
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise _meaning(error, str(data)) from None


def _fetch(asked: HubData, benchmark: str, where: str) -> list[Path]:
    info = HfApi().dataset_info(asked.repository, revision=asked.revision)
    names = [file.rfilename for file in info.siblings or []]
    chosen = _chosen(names, asked, benchmark, where)
    folder = _snapshot(asked, allow_patterns=[glob.escape(name) for name in chosen])
    paths = [folder / name for name in chosen]
    # Where the Hub fails meanwhile, the client takes whatever it has.
    if folder.name != info.sha or not all(path.is_file() for path in paths):
        raise NetworkError(
            "the data set changed while it was fetched, or was not fetched whole",
            where=where,
            fix="run the same command again",
        )
    return paths


def _fetched_before(asked: HubData, benchmark: str, where: str) -> list[Path]:
    try:
        folder = _snapshot(asked, allow_patterns=[], local_files_only=True)
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise NetworkError(
            "the data set is not here, and the Hub's client is offline",
            where=where,
            fix="unset HF_HUB_OFFLINE once, and it stays in the cache",
        ) from error
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*.parquet")]
    return [folder / name for name in _chosen(names, asked, benchmark, where)]


def _snapshot(asked: HubData, **options: Any) -> Path:
    """The folder of the revision in the client's cache."""
    return Path(
        snapshot_download(asked.repository, repo_type="dataset", revision=asked.revision, **options)
    )


def _chosen(names: list[str], asked: HubData, benchmark: str, where: str) -> list[str]:
    shards = [name for name in names if name.endswith(".parquet")]
    if not shards:
        raise UsageError(
            "this data set has no Parquet files",
            where=where,
            fix="fetch it yourself, and give class folders or tars",
        )
    return choose_shards(shards, asked.split, benchmark, where)


def _meaning(error: Exception, where: str) -> ZooError:
    if isinstance(error, GatedRepoError):
        return UsageError(
            "the data set is behind terms that this token has not agreed to",
            where=where,
            fix="agree to them on the set's page on the Hub, and run hf auth login",
        )
    if isinstance(error, RevisionNotFoundError):
        return UsageError("the data set has no such revision", where=where, fix="check its page")
    if isinstance(error, RepositoryNotFoundError):
        return UsageError(
            "there is no such data set, or the token may not read it",
            where=where,
            fix="check the name; for a private or gated set run hf auth login",
        )
    response = getattr(error, "response", None)
    what = type(error).__name__ if response is None else f"status {response.status_code}"
    return NetworkError(
        f"the Hub did not deliver: {what}",
        where=where,
        fix="run the same command again: what was fetched is kept",
    )
