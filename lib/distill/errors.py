"""Errors a user can act on: one line that names the thing, the value and the remedy."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class DistillError(Exception):
    """A fault in what the user gave, not in the code. Scripts print it without a traceback and exit 1."""


@contextmanager
def full_disk_as_oserror(where: Path) -> Iterator[None]:
    """Orbax says in words only, inside errors of its own, that the disk is full: raise that as an OSError."""
    try:
        yield
    except Exception as error:
        for number in (errno.ENOSPC, errno.EDQUOT):
            if os.strerror(number) in str(error):
                raise OSError(number, os.strerror(number), str(where)) from None
        raise


@contextmanager
def explained() -> Iterator[None]:
    """Turn a `DistillError`, a full disk or an interrupt into one line on stderr and exit status 1 (130).

    Everything else keeps its traceback: it is our bug, and the traceback is what a report needs.
    """
    try:
        yield
    except DistillError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted: run the same command again, it goes on where it stopped", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" writing {error.filename}" if error.filename else ""
        print(f"error: no space left{where}: free some, or put `results:` on a larger disk; "
              "then run the same command again", file=sys.stderr)  # fmt: skip
        sys.exit(1)
