"""What a licence of weights lets others publish of what was made from them.

A student is treated as made from its teacher: whether the law agrees is open, and the careful
reading costs its publisher one option.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from zoo.errors import IntegrityError, UsageError

NOT_STATED = "not stated"

# https://huggingface.co/docs/hub/repositories-licenses
LISTED = frozenset(
    """apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
    bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear
    c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0
    cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
    cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl
    ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl
    lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0
    odc-by odbl openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr
    deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2
    llama3.3 llama4 grok2-community gemma unknown other""".split()  # noqa: SIM905
)

_CREATIVE_COMMONS = (
    *("cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0"),
    *("cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0"),
    *("cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0"),
    "cc-by-nc-sa-4.0",
)
_OPEN = (
    *("apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "isc"),
    *("unlicense", "zlib", "bsl-1.0", "afl-3.0", "artistic-2.0", "ecl-2.0", "ncsa", "wtfpl"),
)
KNOWN = frozenset((*_CREATIVE_COMMONS, *_OPEN))
"""Of these we know what they ask."""


def normalised(license_: str) -> str:
    """A licence as the Hub spells it: ``CC-BY-NC 4.0`` is ``cc-by-nc-4.0``."""
    return re.sub(r"[\s_]+", "-", license_.strip().lower())


class HubLicense(NamedTuple):
    """A licence as the front matter states it."""

    license: str
    license_name: str | None = None
    license_link: str | None = None


def hub_license(license_: str, link: str) -> HubLicense:
    """The keys for the Hub.  link: where the text of a licence it does not list stands."""
    name = normalised(license_)
    if name in LISTED - {"other", "unknown"}:
        return HubLicense(name)
    slug = re.sub(r"[^a-z0-9.-]+", "-", name).strip("-.") or "see-record"
    return HubLicense("other", slug, link)


def objection(ancestor: str, published: str) -> str | None:
    """Why what was made from weights of one licence cannot be published under another, if so."""
    ours, theirs = normalised(published), normalised(ancestor)
    if theirs in LISTED - KNOWN - {"other", "unknown"}:
        return None if ours == theirs else f"what it asks is for you to read: --license {theirs}"
    if theirs not in KNOWN:
        return "nobody has said that it may be shared"
    words = set(theirs.split("-")) if theirs in _CREATIVE_COMMONS else set()
    if "nd" in words:
        return "it allows no derivatives"
    if "sa" in words and ours != theirs:
        return f"it asks for the same licence: --license {theirs}"
    # Of a licence that we do not know it cannot be said that it forbids commerce.
    if "nc" in words and not (ours in _CREATIVE_COMMONS and "nc" in ours.split("-")):
        return f"it allows no commercial use: --license {theirs}"
    return None


def publishable(
    license_: str | None, stated: str, ancestors: Mapping[str, str], *, acknowledged: bool
) -> str:
    """The licence under which a model may be published.

    license_: the publisher's choice; null for what the record states.  stated: in the record.
    ancestors: licences of the weights it was made from, by name.  acknowledged: the publisher
    holds the rights in them, or has the holder's leave.  Raises UsageError where none is stated,
    IntegrityError where an ancestor's licence stands against it.
    """
    chosen = license_ or stated
    if normalised(chosen) in {normalised(NOT_STATED), "none-stated", ""}:
        raise UsageError(
            "under which licence?  The model's record states none for the weights",
            where="zoo.json: licenses.weights",
            fix="give --license, such as --license apache-2.0 or --license cc-by-nc-4.0",
        )
    against = [
        f"{name} ({text}): {why}"
        for name, text in ancestors.items()
        if (why := objection(text, chosen))
    ]
    if against and not acknowledged:
        raise IntegrityError(
            f"the licence of what the model was made from stands against publishing it as {chosen}",
            where="; ".join(against),
            fix="choose another --license where that helps; if you hold the rights, or have the "
            "holder's leave, repeat with --acknowledge-license",
        )
    return chosen
