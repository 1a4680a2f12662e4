"""The model folders in what is served, and which of their files: each becomes a repository.

Where there is a ``config.json``, ``DIR/ORG/NAME`` is ORG/NAME and ``DIR/NAME`` is local/NAME.  A
run folder stands for the model in its ``export/``.  No link is followed.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from zoo.errors import IntegrityError
from zoo.server.history import LOCAL, History, Seen, check_name, check_path
from zoo.server.refusal import RefusedError
from zoo.tree import is_fetched

STORE = ".zoo-serve"
_CONFIG, _RECIPE, _EXPORT = "config.json", "recipe.json", "export"
_TRAINING = {"checkpoints"}
_OPTIMIZER = ("optimizer", "optim", "average")


@dataclass(kw_only=True, slots=True)
class Found:
    """What lies in a served folder."""

    models: dict[str, Path] = field(default_factory=dict)
    """Repository to model folder."""
    skipped: dict[Path, str] = field(default_factory=dict)
    """What looks like a model and is not served, and why."""


def store_of(folder: Path) -> Path:
    """Where the server keeps its own: never inside a model folder, which is to stay as it is."""
    lonely = folder.resolve()
    return (lonely.parent if _is_model(lonely) else lonely) / STORE


def find_models(folder: Path, only: str = "") -> Found:
    """Every model of a served folder, by name.

    only: look no further than for this name.
    """
    found, root = Found(), folder.resolve()
    for name, model in _candidates(root, only):
        if _by_a_link(root, model):
            found.skipped[model] = "a link"
        elif name in found.models:
            found.skipped[model] = f"{name} is {found.models[name]}"
        else:
            try:
                found.models[check_name(name)] = model
            except RefusedError:
                found.skipped[model] = f"the Hub has no name like {name!r}"
    return found


def _by_a_link(root: Path, model: Path) -> bool:
    inside = model.relative_to(root)
    return any((root / part).is_symlink() for part in (inside, *inside.parents))


def look(model: Path) -> dict[str, tuple[int, int, int]]:
    """The files of a model folder that are served: name to size, time (ns) and inode.

    The types that a pull fetches, no hidden file but ``.gitattributes``, no optimizer's state.
    """
    seen = {}
    for place, folders, files in os.walk(model):
        folders[:] = [name for name in folders if name[0] != "." and name not in _TRAINING]
        for file in files:
            path = Path(place, file)
            name = path.relative_to(model).as_posix()
            with suppress(OSError):  # gone meanwhile
                status = path.lstat()
                if stat.S_ISREG(status.st_mode) and _is_served(name):
                    seen[name] = (status.st_size, status.st_mtime_ns, status.st_ino)
    return dict(sorted(seen.items()))


class Shelf:
    """The served folder's models, put into the history when they are new or have changed."""

    def __init__(self, folder: Path, history: History) -> None:
        self.folder, self.history = folder, history

    def refresh_all(self) -> Found:
        """Look at every model.  Raises DiskError."""
        found = find_models(self.folder)
        for name, model in list(found.models.items()):
            self._publish(name, model)
            if self.history.get(name) is None:
                found.skipped[found.models.pop(name)] = "it cannot be read, or changes all the time"
        return found

    def refresh(self, name: str) -> bool:
        """Look at one model; whether there is a folder for it.  Raises DiskError."""
        model = find_models(self.folder, name).models.get(name)
        if model is not None:
            self._publish(name, model)
        return model is not None

    def _publish(self, name: str, model: Path) -> None:
        if _same(self.history, name, look(model)):
            return
        with self.history.lock:
            seen = look(model)
            if _same(self.history, name, seen):
                return  # another request was quicker
            # What changes or goes meanwhile is looked at again by the next request.
            with suppress(IntegrityError, OSError):
                blobs = self.history.blobs
                files = {path: blobs.copy(path, model / path) for path in seen}
                self.history.publish(name, files, seen)


def _same(history: History, name: str, seen: Seen) -> bool:
    state = history.get(name)
    return state is not None and state.seen == seen


def _candidates(folder: Path, only: str) -> Iterator[tuple[str, Path]]:
    if model := _model_of(folder):
        run = folder.name == _EXPORT and (folder.parent / _RECIPE).is_file()
        yield f"{LOCAL}/{folder.parent.name if run else folder.name}", model
        return
    org, _, own = only.partition("/")
    for entry in _subfolders(folder, own) if org in {"", LOCAL} else []:
        if model := _model_of(entry):
            yield f"{LOCAL}/{entry.name}", model
    for entry in _subfolders(folder, org):
        if not _model_of(entry):
            for inner in _subfolders(entry, own):
                if model := _model_of(inner):
                    yield f"{entry.name}/{inner.name}", model


def _subfolders(folder: Path, only: str) -> list[Path]:
    with suppress(OSError), os.scandir(folder) as entries:
        # One, too, is sought in the list: some disks take Tiny for tiny, another repository.
        asked = [e for e in entries if e.name[0] != "." and only in {"", e.name}]
        return [folder / name for name in sorted(e.name for e in asked if e.is_dir())]
    return []


def _model_of(folder: Path) -> Path | None:
    if _is_model(folder):
        return folder
    export = folder / _EXPORT
    return export if (folder / _RECIPE).is_file() and _is_model(export) else None


def _is_model(folder: Path) -> bool:
    return (folder / _CONFIG).is_file()


def _is_served(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = path.name[0] == "." and name != ".gitattributes"
    weights = path.suffix == ".safetensors"
    training = weights and (len(path.parts) > 1 or path.stem.startswith(_OPTIMIZER))
    try:
        return not hidden and not training and is_fetched(check_path(name))
    except RefusedError:
        return False
