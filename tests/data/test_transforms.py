"""What an experiment does to its data depends on the prompts alone."""

from distill.config.training import Part
from distill.data.transforms import donors, first_samples, transformed

PROMPTS = [f"p{i // 3}" for i in range(90)]


def test_the_first_samples_of_a_prompt() -> None:
    assert first_samples(["a", "b", "a", "a", "b"], 2) == [True, True, True, False, True]


def test_a_share_of_the_prompts_gets_answers_of_others() -> None:
    some, more = donors(PROMPTS, 0.3), donors(PROMPTS, 0.6)
    assert 9 <= len(some) <= 45
    assert len(some) % 3 == 0
    assert some.keys() < more.keys() < donors(PROMPTS, 1.0).keys() == set(range(90))
    for giver in (some, more):
        assert all(PROMPTS[row] != PROMPTS[donor] for row, donor in giver.items())
        assert sorted(giver) == sorted(giver.values())  # no answer is lost
    assert donors(PROMPTS, 0.3) == some
    assert donors(PROMPTS, 0.0) == {}


def test_conversations_are_transformed_at_their_last_turn() -> None:
    def talk(question: str, answer: str) -> list[dict]:
        return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    rows = [talk("a", "1"), talk("a", "2"), talk("b", "3"), talk("c", "4")]
    assert list(transformed(rows, Part(source="generated"))) == rows
    assert list(transformed(rows, Part(source="generated", samples=1))) == [rows[0], *rows[2:]]
    wrong = list(transformed(rows, Part(source="generated", samples=1, corrupt=1.0)))
    assert [row[0]["content"] for row in wrong] == ["a", "b", "c"]
    assert sorted(row[1]["content"] for row in wrong) == ["1", "3", "4"]
    assert all(row not in rows for row in wrong)
