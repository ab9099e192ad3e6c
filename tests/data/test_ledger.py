import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.data.ledger import Account, Ledger

REASONS = st.dictionaries(st.sampled_from(["overlong", "duplicate", "empty"]), st.integers(0, 9))


@st.composite
def batches(draw: st.DrawFn, generations: int = 2) -> tuple[Account, Account]:
    kept, dropped = draw(st.integers(0, 9)), draw(REASONS)
    prompts = Account(kept + sum(dropped.values()), kept, dropped)
    lost = draw(st.integers(0, kept * generations))
    return prompts, Account(kept * generations, kept * generations - lost, {"empty": lost})


@given(st.lists(batches(), max_size=5))
def test_the_sums_hold_in_every_batch_and_in_total(found: list) -> None:
    ledger = Ledger(2, {f"{i:04d}": pair for i, pair in enumerate(found)}).encode()
    for entry in (ledger, *ledger["batches"].values()):
        prompts, samples = entry["prompts"], entry["samples"]
        assert prompts["read"] == prompts["kept"] + sum(prompts["dropped"].values())
        assert samples["asked"] == samples["kept"] + sum(samples["dropped"].values())
        assert samples["asked"] == prompts["kept"] * ledger["num_generations"]
        assert 0 not in [*prompts["dropped"].values(), *samples["dropped"].values()]
    for side, total in (("prompts", "read"), ("samples", "asked")):
        for key in (total, "kept"):
            assert ledger[side][key] == sum(batch[side][key] for batch in ledger["batches"].values())


@given(st.integers(-3, 9), st.integers(-3, 9), REASONS)
def test_a_sum_that_does_not_hold_is_refused(total: int, kept: int, dropped: dict[str, int]) -> None:
    if total == kept + sum(dropped.values()) and kept >= 0:
        Account(total, kept, dropped)
    else:
        with pytest.raises(ValueError, match="is not"):
            Account(total, kept, dropped)


def test_samples_that_nobody_asked_for_are_refused() -> None:
    with pytest.raises(ValueError, match="batch 0003: 5 samples, 6 were asked for"):
        Ledger(2, {"0003": (Account(3, 3), Account(5, 5))})


def test_the_summary_is_one_line() -> None:
    ledger = Ledger(2, {"0000": (Account(1200, 1100, {"overlong": 100}), Account(2200, 2200))})
    expected = "prompts: 1,200 read, 1,100 kept, dropped: overlong 100; samples: 2,200 asked, 2,200 kept"
    assert ledger.summary() == expected
