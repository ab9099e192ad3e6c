"""A job does not outlive the workflow that started it: nobody would wait for it, and the next one would."""

import os
import signal
import threading
import time


def leave_with_parent() -> None:
    """Send this process SIGTERM within a second after the one that `DISTILL_PARENT` names is gone.

    Without the variable nothing is watched: a script that a person starts runs to its end.
    """
    if parent := os.environ.get("DISTILL_PARENT"):
        threading.Thread(target=_watch, args=(int(parent),), name="parent", daemon=True).start()


def _watch(parent: int) -> None:
    while _is_alive(parent):
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is there, and somebody else's
        return True
    return True
