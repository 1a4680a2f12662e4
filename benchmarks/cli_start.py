"""CPU seconds of ``zoo --help``, ``list`` and ``info`` against ``hf --help``.

In processes of their own, taking turns.

    python -m benchmarks.cli_start [--rounds 9]

Goal: no more than the Hub client's own command takes.
"""

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path


def cpu_seconds(command: list[str]) -> float:
    """User and system time of a command and its children."""
    before = os.times()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    after = os.times()
    user = after.children_user - before.children_user
    return user + after.children_system - before.children_system


def main() -> None:
    """Print the seconds of each and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    scripts = Path(sys.executable).parent
    lines = ["hf --help", "zoo --help", "zoo list", "zoo info mae-vit-l"]
    commands = {line: [str(scripts / line.split()[0]), *line.split()[1:]] for line in lines}
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(options.rounds + 1):
        for name, command in commands.items():
            figure = cpu_seconds(command)
            if number:  # the first round fills the page cache
                taken[name].append(figure)
    for name, figures in taken.items():
        ratio = statistics.median(
            mine / theirs for mine, theirs in zip(figures, taken[lines[0]], strict=True)
        )
        print(f"{name}: {statistics.median(figures):.3f} s CPU, {ratio:.2f} of hf's (goal 1)")


if __name__ == "__main__":
    main()
