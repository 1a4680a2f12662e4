"""What ``diversity@1`` pins; light enough for a table that only asks whether it has moved on."""

import hashlib
import json

PROTOCOL = "diversity@1"
MASK_RATIO = 0.6
"""Img2Vec's."""
MASK_SEED = 0


def protocol_digest() -> str:
    """sha256 of what ``diversity@1`` pins; the rest are settings, which a result states."""
    pinned = {"protocol": PROTOCOL, "mask_ratio": MASK_RATIO, "mask_seed": MASK_SEED}
    return hashlib.sha256(json.dumps(pinned, sort_keys=True).encode()).hexdigest()
