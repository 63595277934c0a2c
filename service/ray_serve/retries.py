"""How often Ray's proxies send a request again whose replica ended, and how long they wait."""

from __future__ import annotations

import asyncio

ATTEMPTS = range(1, 6)
_PAUSE_SECONDS = 0.1  # times the number of attempts


async def pause_after(attempt: int) -> None:
    """Waits before the next attempt."""
    await asyncio.sleep(_PAUSE_SECONDS * attempt)
