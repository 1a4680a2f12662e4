"""What verbs share: some options, and how an answer is printed."""

import json
import sys
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
AllowChange = Annotated[
    list[str] | None,
    typer.Option(metavar="FIELD", help="Continue although this differs; may be repeated."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def answer(value: Any, as_json: bool) -> None:
    """Print a value as one JSON object, or as the text that it is; also where there is no UTF-8."""
    encoding = sys.stdout.encoding or "ascii"
    escaped = not encoding.lower().startswith("utf")
    text = json.dumps(value, indent=2, ensure_ascii=escaped) if as_json else str(value)
    print(text.encode(encoding, "backslashreplace").decode(encoding))


def aligned(values: dict[str, Any]) -> str:
    """A line a key, the values under one another."""
    width = max(map(len, values))
    return "\n".join(f"{key:<{width}}  {value}" for key, value in values.items())
