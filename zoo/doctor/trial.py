"""Import modules one after another and say how it went, in a process that may crash or hang.

Run by file, with the standard library alone, so that nothing it tries is needed to try it.
"""

import importlib
import json
import os
import sys
import time
from typing import Any

GPU = "gpu"
"""A step that imports nothing: it asks torch for its devices, which can hang or crash too."""
NEEDS = {GPU: "torch", "torchvision": "torch", "timm": "torchvision", "mmseg": "torch"}
"""Not tried once what they need has failed."""


def attempt(step: str) -> dict[str, Any]:
    """What came of a step: its version, or why it failed."""
    began = time.monotonic()
    result: dict[str, Any] = {}
    try:
        if step == GPU:
            result["facts"] = devices()
        else:
            module = importlib.import_module(step)
            result["version"] = str(getattr(module, "__version__", ""))
    except BaseException as error:  # SystemExit too: whatever a module does when it is imported
        lines = str(error).strip().splitlines() or [""]
        result["error"] = f"{type(error).__name__}: {lines[0][:300]}"
    result["seconds"] = time.monotonic() - began
    return result


def devices() -> dict[str, Any]:
    """What torch was built for and what it sees.  memory: bytes."""
    torch = importlib.import_module("torch")
    hip = getattr(torch.version, "hip", None)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    every = [torch.cuda.get_device_properties(number) for number in range(count)]
    return {
        "cuda": torch.version.cuda,
        "hip": hip,
        "mps": torch.backends.mps.is_available(),
        "gpus": [
            {"name": p.name, "memory": p.total_memory, "bf16": bool(hip) or p.major >= 8}
            for p in every
        ],
    }


def main(job: dict[str, Any]) -> None:
    """job: path (for ``sys.path``), steps, and failed, those of earlier processes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what modules print is no answer
    sys.path[:] = job["path"]
    failed = set(job["failed"])

    def say(**line: Any) -> None:
        print(json.dumps(line), file=answers, flush=True)

    for step in job["steps"]:
        say(begin=step)
        needed = NEEDS.get(step)
        if needed in failed:
            result: dict[str, Any] = {"error": f"not tried: {needed} does not import"}
        else:
            result = attempt(step)
        if "error" in result:
            failed.add(step)
        say(step=step, **result)
    os._exit(0)  # what modules do at the end is their own affair


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
