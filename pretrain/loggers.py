"""Where the rows of a run go: ``log.jsonl`` always; TensorBoard and W&B where the recipe says so.

``log.jsonl`` alone is exact: a run that was killed and continued ends with the very rows of an
undisturbed one.  The others show the same rows; nothing of them can stop a run but a full disk.
"""

import importlib.metadata
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

from torch.utils.tensorboard import SummaryWriter

from zoo.errors import UsageError
from zoo.files import atomic_json, disk_errors

LoggerName = Literal["tensorboard", "wandb"]
Part = Literal["train", "val", "signal"]
"""What a row tells of."""

# Bounds on how long W&B's server may keep us waiting, at the beginning and at the end of a run.
_WANDB_BEGIN_SECONDS, _WANDB_END_SECONDS = 20, 5


class Logger(Protocol):
    """What shows the rows of a run beside ``log.jsonl``."""

    begins_at: int
    """The first step of which it lacks the row: earlier ones are not given to it again."""

    def row(self, step: int, part: Part, values: Mapping[str, float]) -> None:
        """One row of numbers, of the state after ``step`` optimizer steps."""
        ...

    def close(self) -> None:
        """The last row has been written."""
        ...


class JsonLines:
    """``log.jsonl``: one JSON object a line.

    offset: bytes that belong to the checkpoint we continue from; what a killed run wrote beyond
    is dropped, so that no step stands there twice.  Every method raises DiskError.
    """

    def __init__(self, path: Path, offset: int) -> None:
        self.path = path
        with disk_errors(path):
            self._file = path.open("a+b")
            _keep_rows(self._file, offset)

    def write(self, row: Mapping[str, Any]) -> None:
        """One row.  Raises ValueError for a number that is not finite, which JSON has not."""
        with disk_errors(self.path):
            self._file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
            self._file.flush()

    def mark(self) -> int:
        """Bytes so far, safely on disk."""
        with disk_errors(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
        return self.path.stat().st_size

    def close(self) -> None:
        with disk_errors(self.path):  # what could not be written is tried once more
            self._file.close()


def _keep_rows(file: BinaryIO, offset: int) -> None:
    """Cut a log to the whole rows of its first ``offset`` bytes; it may hold fewer."""
    file.seek(0)
    file.truncate(file.read(offset).rfind(b"\n") + 1)


class TensorBoard:
    """Event files in ``tensorboard/``.

    begins_at: the first step that ``log.jsonl`` lacks; what a killed run wrote beyond is hidden.
    Raises DiskError.
    """

    def __init__(self, folder: Path, begins_at: int) -> None:
        self.path, self.begins_at = folder / "tensorboard", begins_at
        with disk_errors(self.path):
            self._board = SummaryWriter(str(self.path), purge_step=begins_at)

    def row(self, step: int, part: Part, values: Mapping[str, float]) -> None:
        with disk_errors(self.path):
            for name, value in values.items():
                self._board.add_scalar(f"{part}/{name}", value, step)

    def close(self) -> None:
        with disk_errors(self.path):
            self._board.close()


class WandB:
    """A run of Weights & Biases, through its own package; continued under the same id.

    A process of W&B's own holds the rows and sends them.  A server that does not answer costs
    seconds at the beginning and at the end of a run; then ``wandb sync`` sends what lies in
    ``wandb/``.  That process loses its last rows when the run is killed: so it is given again
    those that it lacks, as the server says; without a server, all, in place of what it kept.

    Account, project and mode are W&B's own variables (WANDB_API_KEY, WANDB_PROJECT,
    WANDB_MODE=offline), and nothing of them is written down here.

    name: of the run.  config: what its page should say of it.  say: tells the reader where rows
    do not arrive.  Raises UsageError where there is no account, DiskError.
    """

    def __init__(
        self, folder: Path, *, name: str, config: Mapping[str, Any], say: Callable[[str], None]
    ) -> None:
        self._folder, self._say, self._failed = folder, say, False
        settings = {"name": name, "config": dict(config), "id": self._id()}
        self._run = self._begin(settings)
        self.begins_at = self._run.starting_step
        if self._run.offline:
            self._drop_earlier(settings["id"])

    def _id(self) -> str:
        """The run's id at W&B, made once."""
        place = self._folder / "wandb.json"
        try:
            return str(json.loads(place.read_bytes())["id"])
        except (OSError, ValueError, KeyError, TypeError):
            made = uuid.uuid4().hex[:12]
            atomic_json(place, {"id": made})
            return made

    def _begin(self, settings: dict[str, Any]) -> Any:
        import wandb
        import wandb.errors

        def begin(mode: Literal["offline"] | None) -> Any:
            return wandb.init(
                **settings,
                project=os.environ.get("WANDB_PROJECT", "tinyzoo"),
                dir=str(self._folder),
                resume="allow",
                mode=mode,
                settings=wandb.Settings(
                    console="off",  # ours is a progress bar, and the user's
                    disable_git=True,  # of whatever folder the command was given in
                    disable_code=True,
                    silent=True,
                    init_timeout=_WANDB_BEGIN_SECONDS,
                    finish_timeout=_WANDB_END_SECONDS,
                ),
            )

        try:
            return begin(None)
        except (wandb.errors.UsageError, wandb.errors.AuthenticationError) as error:
            raise UsageError(
                f"W&B does not know who you are: {str(error).splitlines()[0]}",
                where="training.loggers",
                fix="wandb login, or WANDB_MODE=offline, or leave wandb out of training.loggers",
            ) from error
        except wandb.errors.CommError as error:
            self._say(
                f"W&B does not answer: rows are kept in {self._folder / 'wandb'} until you run "
                f"`wandb sync` ({str(error).splitlines()[0]})"
            )
            wandb.teardown()  # or the id is taken by the run that did not begin
            return begin("offline")

    def _drop_earlier(self, run_id: str) -> None:
        """Remove what earlier starts kept without a server: this one is given every row."""
        mine = Path(self._run.dir).parent
        for place in self._folder.glob(f"wandb/offline-run-*-{run_id}"):
            if place.resolve() != mine.resolve():
                shutil.rmtree(place)

    def row(self, step: int, part: Part, values: Mapping[str, float]) -> None:
        named = {f"{part}/{name}": value for name, value in values.items()}
        self._try(lambda: self._run.log(named, step=step))

    def close(self) -> None:
        self._try(self._run.finish)

    def _try(self, call: Callable[[], object]) -> None:
        """What W&B cannot do is told once, and does not stop the run."""
        if self._failed:
            return
        try:
            call()
        except Exception as error:  # whatever a foreign client comes up with
            self._failed = True
            self._say(f"W&B gets no more rows: {type(error).__name__}: {error}")


def open_loggers(
    names: Sequence[LoggerName],
    folder: Path,
    *,
    begins_at: int,
    name: str,
    config: Mapping[str, Any],
    say: Callable[[str], None],
) -> Iterator[Logger]:
    """The loggers of a run.  begins_at, name, config, say: as they take them.

    Raises UsageError, DiskError.
    """
    makers: dict[LoggerName, Callable[[], Logger]] = {
        "tensorboard": lambda: TensorBoard(folder, begins_at),
        "wandb": lambda: WandB(folder, name=name, config=config, say=say),
    }
    for logger in dict.fromkeys(names):
        yield makers[logger]()


def require_packages(names: Sequence[LoggerName]) -> None:
    """Raise UsageError, before anything is trained, where a logger's package is missing."""
    try:
        if "wandb" in names:
            # Not by looking for a module: W&B leaves a folder of that name wherever it ran.
            importlib.metadata.version("wandb")
    except importlib.metadata.PackageNotFoundError as error:
        raise UsageError(
            "the package of a logger is missing: wandb",
            where="training.loggers",
            fix='pip install "tinyzoo[wandb]", or leave wandb out of training.loggers',
        ) from error
