"""What ``zoo eval`` prints: a line for a result, a card for a model with several."""

from collections.abc import Mapping, Sequence

from eval.protocols import PROTOCOLS
from eval.results import Result

_HEAD = ("%", "top-1", "", "top-5", "RMS calibration", "images", "")
_WIDTHS = (18, 7, 8, 8, 17, 9, 0)


def scorecard(results: Sequence[Result], missing: Mapping[str, str]) -> str:
    """All results, model by model; and what was not run.

    results: in the order of models, then of protocols.
    """
    models = list(dict.fromkeys(result.model_digest for result in results))
    parts = [_of_model([r for r in results if r.model_digest == digest]) for digest in models]
    if missing:
        parts.append("\n".join(f"not run: {name}: {why}" for name, why in missing.items()))
    return ("\n" if all("\n" not in part for part in parts) else "\n\n").join(parts)


def _of_model(results: Sequence[Result]) -> str:
    if len(results) == 1:
        return results[0].line()
    first = results[0]
    told = [first.model, first.model_digest[:12], first.dtype]
    if "transform" in first.settings:
        told.append(f"transform {first.settings['transform']}")
    lines = [" · ".join(told), "", _row(_HEAD)]
    by_protocol = {result.protocol: result for result in results}
    of_companion = {p.companion: p.id for p in PROTOCOLS.values() if p.companion}
    lines += [
        _line(result, by_protocol.get(of_companion.get(result.protocol, "")))
        for result in results
        if "top-5" in result.details
    ]
    lines += [line for result in results if "errors" in result.details for line in _errors(result)]
    partial = dict.fromkeys(r.data for r in results if not r.complete)
    return "\n".join([*lines, *([""] if partial else []), *partial])


def _line(result: Result, hard: Result | None) -> str:
    """A row of the card.  hard: the result that this one is the clean companion of."""
    return _row(
        (
            ("  " if hard else "") + result.protocol,
            f"{result.value:.2f}",
            f"± {result.standard_error:.2f}",
            f"{result.details['top-5']['percent']:.2f}",
            f"{result.details['rms-calibration']:.2f}",
            f"{result.samples:,}",
            f"  gap {result.value - hard.value:.2f}" if hard else "",
        )
    ).rstrip()


def _row(cells: Sequence[str]) -> str:
    name, *rest = cells
    return name.ljust(_WIDTHS[0]) + "".join(
        cell.rjust(width) for cell, width in zip(rest, _WIDTHS[1:], strict=True)
    )


def _errors(result: Result) -> list[str]:
    """ImageNet-C: both scores, by their names, and the errors of each type."""
    value = f"{result.value:.2f} ± {result.standard_error:.2f} %"
    plain = result.details.get("mean-error-unnormalised")
    if plain is None:
        return [
            "",
            f"{result.protocol}: mean error {value} of some images: neither mCE nor its like",
        ]
    return [
        "",
        f"{result.protocol}: mCE {value}, normalised by AlexNet's errors, over 15 types",
        f"{'':{len(result.protocol)}}  mean error {plain['percent']:.2f} ± "
        f"{plain['standard_error']:.2f} %, unnormalised: not an mCE",
    ]
