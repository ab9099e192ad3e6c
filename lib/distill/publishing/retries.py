"""When a failed attempt is worth another, and how long to wait for it."""

from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

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
    if header.strip().isdigit():
        return float(header)
    try:
        return max(0.0, (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None
