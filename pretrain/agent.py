"""torchrun, leaving behind what it knows of ranks that failed: ``python -m pretrain.agent FILE …``.

What follows FILE is torchrun's own.  It exits with 1 whatever happened, and tells of it on stderr.
Its ranks know its pid: one that still starts when it dies would otherwise take init for it.
"""

import os
import sys
from pathlib import Path

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from pretrain.distributed import TORCHRUN
from zoo.files import atomic_json


def main(place: Path | None, words: list[str]) -> None:
    """Run torchrun's words; ``place`` then holds exit code and time of each rank that failed.

    The time is in seconds since 1970.  None where nobody reads it.  Raises SystemExit.
    """
    os.environ[TORCHRUN] = str(os.getpid())
    try:
        run.main(words)
    except ChildFailedError as error:
        failed = {
            str(rank): {"code": failure.exitcode, "time": failure.timestamp}
            for rank, failure in error.failures.items()
        }
        if place:
            atomic_json(place, failed)
        sys.exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1] else None, sys.argv[2:])
