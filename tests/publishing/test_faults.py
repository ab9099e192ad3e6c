"""Whatever goes wrong, there is one right publication or a clear error and then a rerun that finishes.

What is expected is the table in docs/data.md, cell by cell.
"""

from pathlib import Path

import pytest
from faults import FAULTS, outcome, write
from places import Place

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = ("hf", "gs", "s3")
TABLE = {
    cells[1].strip(): dict(zip(COLUMNS, (cell.strip() for cell in cells[2:5]), strict=True))
    for line in (ROOT / "docs/data.md").read_text().splitlines()
    if len(cells := line.split("|")) == 6 and cells[1].strip() in FAULTS
}
pytestmark = pytest.mark.filterwarnings(  # of the clients' own making, in their retries
    "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_ends_as_the_table_says(fault: str, place: Place, tmp_path: Path) -> None:
    assert outcome(fault, place, write(tmp_path / "dataset")) == TABLE[fault][place.scheme]


def test_the_table_has_every_fault() -> None:
    assert list(TABLE) == list(FAULTS)
