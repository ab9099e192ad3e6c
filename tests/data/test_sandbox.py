"""Code that a model wrote runs where it can do no harm by accident, and passes only by coming to its end."""

import time

import pytest

from distill.config.dataset import Dataset
from distill.data.filters import Sample, filters, first_reason
from distill.data.sandbox import Limits, run_python

LIMITS = Limits(seconds=5, megabytes=256)


@pytest.mark.parametrize(
    ("program", "found"),
    [
        ("assert 1 + 1 == 2", None),
        ("print('x' * 10_000_000)", None),
        ("assert 1 + 1 == 3", "code_failed"),
        ("import sys; sys.exit(0)", "code_failed"),
        ("import os; os._exit(0)", "code_failed"),
        ("x = bytearray(1 << 30)", "code_failed"),
        ("open('big', 'wb').write(b'x' * (2 << 20))", "code_failed"),
        ("import os; assert 'PATH' not in os.environ", None),
        ("import os; assert os.listdir() == ['program.py']", None),
        ("this is no Python", "code_failed"),
    ],
)
def test_what_becomes_of_a_program(program: str, found: str | None) -> None:
    assert run_python(program, LIMITS) == found


@pytest.mark.parametrize("program", ["while True: pass", "import time; time.sleep(60)"])
def test_a_program_that_does_not_end_is_ended(program: str) -> None:
    start = time.monotonic()
    assert run_python(program, Limits(seconds=0.5, megabytes=256)) == "code_timeout"
    assert time.monotonic() - start < 5


def test_the_last_block_is_run_with_the_assertions_of_the_reference() -> None:
    chosen = filters(Dataset(verifier={"name": "code"}))
    right = "First:\n```python\nwrong(\n```\nBetter:\n```python\ndef twice(x):\n    return 2 * x\n```\nDone."
    sample = Sample("p", right, "stop", "assert twice(4) == 8")
    assert first_reason(chosen, sample) is None
    assert first_reason(chosen, Sample("p", right, "stop", "assert twice(4) == 9")) == "code_failed"
    assert first_reason(chosen, Sample("p", "```\ndef twice(x): return 8\n```", "stop", sample.reference)) is None
    assert first_reason(chosen, Sample("p", right, "stop", None)) == "no_reference"
