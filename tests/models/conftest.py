"""What the tests of the families leave behind for the table in docs/models.md, see table.py."""

from collections.abc import Callable

import pytest


@pytest.fixture
def holds(record_property: Callable) -> Callable[..., None]:
    """`holds(family, check, value)`: names the cell that a passing test fills, and what it measured."""

    def note(family: str, check: str, value: float | None = None) -> None:
        for name, entry in (("family", family), ("check", check), ("value", value)):
            record_property(name, entry)

    return note
