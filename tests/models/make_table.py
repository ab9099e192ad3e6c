"""Run the tests of the models and write their outcome as the table in docs/models.md.

    pip install .[parity]
    python tests/models/make_table.py

A test names the cells that it fills with the fixture `holds`. If any test fails, nothing is written.
"""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- table: made by tests/models/make_table.py -->\n", "<!-- end of table -->"

ROWS = {
    "llama_mha": "Llama 2",
    "llama_gqa_tied": "Llama 3, SmolLM2 (shared heads, tied)",
    "llama3_scaling": "Llama 3.1, 3.2, 3.3",
    "mistral": "Mistral",
    "mixtral": "Mixtral",
    "qwen2": "Qwen2, 2.5",
    "qwen3": "Qwen3",
    "qwen3_moe": "Qwen3-MoE",
    "gemma2": "Gemma 2",
    "gemma3_text": "Gemma 3 text",
    "phi3": "Phi-3",
    "phi3_longrope": "Phi-3, LongRoPE",
    "deepseek_v2_lite": "DeepSeek-V2-Lite",
    "deepseek_v2": "DeepSeek-V2",
    "deepseek_v3": "DeepSeek-V3",
}
COLUMNS = {
    "plain": ("golden plain",),
    "padded": ("golden padded",),
    "packed": ("golden packed",),
    "live": ("live plain", "live padded", "live packed"),
    "decode path": ("cached",),
    "scanned": ("scanned",),
    "8 devices": ("8 devices",),
    "tensors": ("tensors",),
    "config": ("configuration",),
    "loads": ("loads in transformers",),
}


class Cells:
    """Collects what passing tests say that holds: (family, check) → what was measured, if anything."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str], float | None] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            entries = [value for _, value in report.user_properties]
            for family, check, value in zip(entries[::3], entries[1::3], entries[2::3], strict=True):
                self.found[family, check] = value


def cell(cells: Cells, family: str, checks: tuple[str, ...]) -> str:
    """The largest of what was measured, or a tick; a cell that no test filled stops the run."""
    if missing := [check for check in checks if (family, check) not in cells.found]:
        sys.exit(f"no test said that {missing[0]} holds for {family}")
    values = [cells.found[family, check] for check in checks]
    if None in values:
        return "✓"
    return f"{max(values):.0e}".replace("e-0", "e-") if any(values) else "0"


def main() -> None:
    if not importlib.util.find_spec("torch"):
        sys.exit("the live half needs torch: pip install .[parity]")
    cells = Cells()
    if code := pytest.main([str(Path(__file__).parent), "-q", "-p", "no:cacheprovider"], plugins=[cells]):
        sys.exit(int(code))
    lines = ["| | " + " | ".join(COLUMNS) + " |", "|---|" + "---|" * len(COLUMNS)]
    for family, title in ROWS.items():
        lines.append(
            "| ".join([f"| {title} ", *(f"{cell(cells, family, checks)} " for checks in COLUMNS.values())]) + "|"
        )
    text = PAGE.read_text(encoding="utf-8")
    table = BEGIN + "\n".join(lines) + "\n" + END
    PAGE.write_text(
        re.sub(re.escape(BEGIN) + ".*?" + re.escape(END), lambda _: table, text, flags=re.S), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
