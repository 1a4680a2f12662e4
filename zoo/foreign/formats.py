"""The formats of other projects that ``zoo import`` reads: one file each, and this table."""

from zoo.foreign import dino, mae, tinymim
from zoo.foreign.found import Found, Recognised

FORMATS = (tinymim.FORMAT, mae.FORMAT, dino.FORMAT)
"""The first that claims a file has it: TinyMIM's files stand in MAE's container."""

PARTS = tuple(dict.fromkeys(one.part for one in FORMATS))
EXPECTED = "one of these files\n         " + "\n         ".join(
    f"- {one.expected}" for one in reversed(FORMATS)
)


def recognise(found: Found) -> Recognised:
    """Which upstream's file it is, and what is in it, by its content.

    Raises IntegrityError that lists the files which can be imported.
    """
    if found.seen.odd:
        raise found.unfit("not all of it are weights", ", ".join(found.seen.odd))
    if not found.shapes:
        raise found.unfit("no weights where a known file has them", found.contents)
    for one in FORMATS:
        if one.claims(found):
            return one.recognise(found)
    raise found.unfit("none of the known formats", found.contents)
