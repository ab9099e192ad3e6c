"""What all settings share, and the checks that several of them make."""

import difflib
import re
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"


class Settings(BaseModel):
    """Frozen, and strict about names: an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def server_url(endpoint: str, key: str) -> str:
    """The address of a server whose key is in the variable `key`, without `/v1`; or a ValueError."""
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{endpoint!r} is no URL: http://host:port")
    if parts.username or parts.password or parts.query:
        raise ValueError(f"the key goes into {key}, not into the URL: a recipe is for others to read")
    return endpoint.rstrip("/").removesuffix("/v1")


def regular_expression(value: str | None) -> str | None:
    """`value`, which is one, or a ValueError."""
    try:
        re.compile(value or "")
    except re.error as error:
        raise ValueError(f"{value!r} is no regular expression ({error})") from None
    return value


def did_you_mean(name: str, known: Any) -> str:
    """` (did you mean x?)`, or the list of what there is."""
    known = [str(k) for k in known]
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f" (did you mean {close[0]}?)"
    return f" (there is {', '.join(known)})" if known else ""
