"""Where the rows of a run go: ``log.jsonl`` always; TensorBoard and W&B where the recipe says so.

``log.jsonl`` alone is exact: a run that was killed and continued ends with the very rows of an
undisturbed one.  The others show the same rows, and none of them can stop a run.
"""

import importlib.metadata
import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol, get_args

from torch.utils.tensorboard import SummaryWriter

from zoo.errors import UsageError
from zoo.files import atomic_json, disk_errors

LoggerName = Literal["tensorboard", "wandb"]
Part = Literal["train", "val", "signal"]
"""What a row tells of; those of one step come in this order."""

# Bounds on how long W&B's server may keep us waiting, at the beginning and at the end of a run.
_WANDB_BEGIN_SECONDS, _WANDB_END_SECONDS = 20, 5


class Logger(Protocol):
    """What shows the rows of a run beside ``log.jsonl``."""

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
        self._file.close()


def _keep_rows(file: BinaryIO, offset: int) -> None:
    """Cut a log to the whole rows of its first ``offset`` bytes; it may hold fewer."""
    file.seek(0)
    file.truncate(file.read(offset).rfind(b"\n") + 1)


class TensorBoard:
    """Event files in ``tensorboard/``.

    step: of the state we continue from; later rows of a killed run are hidden.  Raises DiskError.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.path = folder / "tensorboard"
        with disk_errors(self.path):
            self._board = SummaryWriter(str(self.path), purge_step=step + 1)

    def row(self, step: int, part: Part, values: Mapping[str, float]) -> None:
        with disk_errors(self.path):
            for name, value in values.items():
                self._board.add_scalar(f"{part}/{name}", value, step)

    def close(self) -> None:
        self._board.close()


class WandB:
    """A run of Weights & Biases, through its own package; continued under the same id.

    A process of W&B's own holds the rows and sends them: a server that does not answer costs a
    few seconds at the beginning and at the end, and then ``wandb sync`` sends what lies in
    ``wandb/``.  Account, project and mode are W&B's own variables (WANDB_API_KEY, WANDB_PROJECT,
    WANDB_MODE=offline): none of them is written down here.

    name: of the run.  config: what its page should say of it.  say: tells the reader where rows
    do not arrive.  Raises UsageError where there is no account, DiskError.
    """

    def __init__(
        self, folder: Path, *, name: str, config: Mapping[str, Any], say: Callable[[str], None]
    ) -> None:
        self._say, self._failed = say, False
        self._place = folder / "wandb.json"
        self._sent = _read_sent(self._place)
        self._write_sent()
        self._run = self._begin(folder, name, dict(config))
        # Rows by our own count: W&B's own goes on where a killed run was, beyond ours.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def _begin(self, folder: Path, name: str, config: dict[str, Any]) -> Any:
        import wandb
        import wandb.errors

        def begin(mode: Literal["offline"] | None) -> Any:
            return wandb.init(
                project=os.environ.get("WANDB_PROJECT", "tinyzoo"),
                id=self._sent["id"],
                resume="allow",
                dir=str(folder),
                name=name,
                config=config,
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
                f"W&B does not answer: rows are kept in {folder / 'wandb'} until you run "
                f"`wandb sync` ({str(error).splitlines()[0]})"
            )
            return begin("offline")

    def row(self, step: int, part: Part, values: Mapping[str, float]) -> None:
        place = [step, get_args(Part).index(part)]
        if place <= self._sent["last"]:
            return  # a killed run came this far, and sent the same row
        # Before it is sent: one that a kill keeps from arriving is missed, rather than doubled.
        self._sent["last"] = place
        self._write_sent()
        named = {f"{part}/{name}": value for name, value in values.items()}
        self._try(lambda: self._run.log({"step": step, **named}))

    def close(self) -> None:
        self._try(self._run.finish)

    def _write_sent(self) -> None:
        atomic_json(self._place, self._sent)

    def _try(self, call: Callable[[], object]) -> None:
        """What W&B cannot do is told once, and does not stop the run."""
        if self._failed:
            return
        try:
            call()
        except Exception as error:  # whatever a foreign client comes up with
            self._failed = True
            self._say(f"W&B gets no more rows: {type(error).__name__}: {error}")


def _read_sent(place: Path) -> dict[str, Any]:
    """The run's id at W&B and the last row it was given, or those of a new run."""
    try:
        sent = json.loads(place.read_bytes())
        return {"id": str(sent["id"]), "last": [int(number) for number in sent["last"]]}
    except (OSError, ValueError, KeyError, TypeError):
        return {"id": uuid.uuid4().hex[:12], "last": [-1, 0]}


def open_loggers(
    names: Sequence[LoggerName],
    folder: Path,
    *,
    step: int,
    name: str,
    config: Mapping[str, Any],
    say: Callable[[str], None],
) -> Iterator[Logger]:
    """The loggers of a run that continues at ``step``.  Raises UsageError, DiskError."""
    makers: dict[LoggerName, Callable[[], Logger]] = {
        "tensorboard": lambda: TensorBoard(folder, step),
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
