"""When an object that failed may be tried again: exponential, capped, with jitter."""

from __future__ import annotations

import random

from kvmd.settings import Backoff


def delay_seconds(attempts: int, settings: Backoff) -> float:
    """Seconds to wait after the *attempts*-th failure (from 1): first, twice that, … up to the limit, ± jitter."""
    plain: float = min(settings.limit, settings.first * 2.0 ** min(attempts - 1, 30))
    return plain * (1 + settings.jitter * (2 * random.random() - 1))
