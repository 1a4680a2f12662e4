"""CPU seconds of ``zoo --help`` against ``hf --help``, in processes of their own, taking turns.

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
    """Print the seconds of each and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    scripts = Path(sys.executable).parent
    commands = {name: [str(scripts / name), "--help"] for name in ("zoo", "hf")}
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(options.rounds + 1):
        for name, command in commands.items():
            figure = cpu_seconds(command)
            if number:  # the first round fills the page cache
                taken[name].append(figure)
    for name, figures in taken.items():
        print(f"{name} --help: {statistics.median(figures):.3f} s CPU")
    ratios = [mine / theirs for mine, theirs in zip(taken["zoo"], taken["hf"], strict=True)]
    print(f"zoo / hf: {statistics.median(ratios):.2f} (goal 1)")


if __name__ == "__main__":
    main()
