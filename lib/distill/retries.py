"""When a failed attempt is worth another, how long to wait for it, and what the server said."""

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt
from tenacity.wait import wait_random_exponential

ATTEMPTS = 8
LONGEST = 60  # seconds between attempts of our own choice
LONGEST_ASKED = 600  # seconds that a server may ask for
BUSY = (408, 409, 412, 425, 429)  # 409 and 412: somebody else was at it; look again and go on from there


def patiently(transient: Callable[[BaseException], bool], asked: Callable[[BaseException], float | None]) -> Retrying:
    """Attempts while their errors are `transient`; between them what the server `asked` for, or ever longer."""
    growing = wait_random_exponential(multiplier=0.5, max=LONGEST)

    def wait(state: RetryCallState) -> float:
        seconds = asked(state.outcome.exception())
        return growing(state) if seconds is None else min(seconds, LONGEST_ASKED)

    return Retrying(retry=retry_if_exception(transient), wait=wait, stop=stop_after_attempt(ATTEMPTS), reraise=True)


def is_transient(status: int | None) -> bool:
    """Whether an HTTP status may be another one soon."""
    return status is not None and (status >= 500 or status in BUSY)


def retry_after(header: str | None) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or as a date."""
    if not header:
        return None
    with suppress(ValueError):
        return max(0.0, float(header))
    try:
        return max(0.0, (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None


def refusal(response: Any) -> str:
    """What an HTTP server said about its refusal (as OpenAI's do, or as it likes), in a line; its status first."""
    try:
        said = response.json()["error"]
        said = said["message"] if isinstance(said, dict) else said
    except (ValueError, KeyError, TypeError):
        said = response.text[:200]
    return f"{response.status_code}: {' '.join(str(said).split())}"
