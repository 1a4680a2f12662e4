"""``python -m zoo``: the same as ``zoo``, for ``torchrun … -m zoo pretrain …``."""

from zoo.cli import main

if __name__ == "__main__":
    main()
