"""Seeds of a run's draws, each of its own."""

import hashlib
import json
from typing import Any


def derive_seed(*parts: Any) -> int:
    """A seed in `[0, 2**31)` that depends on all parts, JSON values such as a run's seed and ids.

    Sums would not do: `seed + attempt` gives the second attempt of one run the draws that another
    run's first one has.
    """
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
