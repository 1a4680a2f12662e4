"""torchrun, leaving behind what it knows of ranks that failed: ``python -m pretrain.agent FILE …``.

What follows FILE is torchrun's own.  It exits with 1 whatever happened, and tells of it on stderr.
"""

import sys
from pathlib import Path

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from zoo.files import atomic_json


def main(place: Path, words: list[str]) -> None:
    """Run torchrun's words; ``place`` then holds exit code and time of each rank that failed.

    The time is in seconds since 1970.  Raises SystemExit.
    """
    try:
        run.main(words)
    except ChildFailedError as error:
        failed = {
            str(rank): {"code": failure.exitcode, "time": failure.timestamp}
            for rank, failure in error.failures.items()
        }
        atomic_json(place, failed)
        sys.exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
