"""Spans of equal text, and the arrays that a batch has of them."""

import numpy as np
import pytest
from tokenizers_for_tests import CHATML, LLAMA3, THINKING, ZEPHYR, byte_tokenizer, llama2_tokenizer

from distill.data.aligned import APART, MANY, ONE, Aligner
from distill.data.loader import Loader
from distill.errors import DistillError
from distill.text.chat import examples_tokens, placed_tokens
from distill.text.spelling import shared_classes
from distill.text.tokenizer import Tokenizer, load_tokenizer

ANSWERS = ["paris is the capital", "shakespeare wrote é 😀 it.", " who  wrote it\n"]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("tokenizers")
    byte_tokenizer(folder / "chatml", CHATML, eos="<|im_end|>")
    byte_tokenizer(folder / "zephyr", ZEPHYR, extra=("<new>",))
    byte_tokenizer(folder / "llama3", LLAMA3, generation_eos=5)
    byte_tokenizer(folder / "thinking", THINKING, generation_eos=4)
    llama2_tokenizer(folder / "llama2")
    return {path.name: load_tokenizer(path) for path in folder.iterdir()}


def asked(answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": "what"}, {"role": "assistant", "content": answer}]


def aligner(tokenizers: dict[str, Tokenizer], teacher: str, student: str, template: str = "tokenizer") -> Aligner:
    sides = tokenizers[teacher], tokenizers[student]
    return Aligner(*sides, shared_classes(*sides), template)


def pieces(aligner: Aligner, answer: str) -> list[tuple[str, str, int]]:
    """Each span: its tokens of both sides, with spaces between, and its kind."""
    teacher, student = (next(placed_tokens(t, [asked(answer)], aligner.template)) for t in aligner.sides[::-1])
    return [
        (
            " ".join(aligner.teacher.hf.convert_ids_to_tokens(teacher.ids[t : t + m])),
            " ".join(aligner.student.hf.convert_ids_to_tokens(student.ids[s : s + n])),
            kind,
        )
        for s, n, t, m, kind in aligner.spans(teacher, student)
    ]


@pytest.mark.parametrize("name", ["chatml", "zephyr", "llama3", "thinking", "llama2"])
@pytest.mark.parametrize("template", ["tokenizer", "none"])
def test_placed_tokens_are_those_of_examples(tokenizers: dict[str, Tokenizer], name: str, template: str) -> None:
    conversations = [asked(answer) for answer in ANSWERS]
    for placed, (ids, mask) in zip(
        placed_tokens(tokenizers[name], conversations, template),
        examples_tokens(tokenizers[name], conversations, template),
        strict=True,
    ):
        assert (placed.ids, [0] * placed.start + [1] * (len(ids) - placed.start)) == (ids, mask)
        assert placed.text[slice(*placed.answer)] in [answer.strip() for answer in ANSWERS]


def test_the_smallest_spans_of_equal_text(tokenizers: dict[str, Tokenizer]) -> None:
    """Llama 2 writes a space before the end of a turn, which ChatML does not; the end is one event on both sides."""
    assert pieces(aligner(tokenizers, "chatml", "llama2"), "paris is it.") == [
        ("paris", "p a r i s", MANY),
        ("Ġis", "▁ i s", MANY),
        ("Ġit", "▁ i t", MANY),
        (".", ".", ONE),
        ("<|im_end|>", "▁ </s>", APART),
    ]


def test_characters_of_several_bytes(tokenizers: dict[str, Tokenizer]) -> None:
    """Pieces of a character are each placed at all of it: their own bytes tell where they end."""
    found = pieces(aligner(tokenizers, "chatml", "zephyr"), "é 😀!")
    assert [one for one, _, _ in found] == ["Ã", "©", "Ġ", "ð", "Ł", "ĺ", "Ģ", "!", "<|im_end|>"]
    assert {kind for _, _, kind in found} == {ONE}
    # The other side has no token for them: such a span has no class, and the next begins behind it.
    found = pieces(aligner(tokenizers, "chatml", "llama2"), "is é it")
    assert [one for one, _, _ in found] == ["is", "Ġ", "Ġit", "<|im_end|>"]


@pytest.mark.parametrize("template", ["tokenizer", "none"])
@pytest.mark.parametrize("name", ["chatml", "zephyr", "llama3", "thinking", "llama2"])
def test_with_itself_all_spans_are_single_tokens(tokenizers: dict[str, Tokenizer], name: str, template: str) -> None:
    """But for what a template writes behind the answer, which ends with it."""
    itself, answer = aligner(tokenizers, name, name, template), "paris is the capital"
    *found, last = pieces(itself, answer)
    assert {kind for _, _, kind in found} == {ONE}
    assert "".join(one for one, _, _ in found).replace("Ġ", " ").replace("▁", " ").strip() == answer
    assert last[2] == (MANY if name == "llama2" and template == "tokenizer" else ONE)


def test_what_templates_write_around_an_answer_is_no_part_of_it(tokenizers: dict[str, Tokenizer]) -> None:
    """`<think>` opens the student's answer, spaces open and close the text: neither is compared with anything."""
    for teacher, student in (("chatml", "thinking"), ("llama3", "zephyr")):
        found = pieces(aligner(tokenizers, teacher, student), "paris is")
        assert [one for one, _, _ in found[:-1]] == [other for _, other, _ in found[:-1]] == ["paris", "Ġis"]


def test_examples_in_both_sides_tokens(tokenizers: dict[str, Tokenizer]) -> None:
    both, rows = aligner(tokenizers, "chatml", "llama2"), [asked(answer) for answer in ANSWERS]
    whole = both.examples([*rows, rows[0][:1]], 100, 100)
    assert (len(whole), whole.dropped) == (3, {"nothing_to_learn": 1})
    longest = [int(lengths.max()) for lengths in (whole.lengths, whole.aligned.lengths)]
    assert both.examples(rows, longest[0] - 1, 100).dropped == {"overlong": 1}
    assert both.examples(rows, 100, longest[1] - 1).dropped == {"overlong_for_teacher": 1}
    cut = both.examples(rows, longest[0] - 4, 100, overlong="cut")
    assert (cut.cut, int(cut.lengths.max())) == (1, longest[0] - 4)
    for i in range(3):
        spans = cut.aligned.of(i)[1]
        assert (spans[:, 0] + spans[:, 1] <= cut.lengths[i]).all()
    with pytest.raises(DistillError, match=r"no example is left to train on \(overlong_for_teacher 3; the longest"):
        both.examples(rows, 100, 3)
    last = whole.taken(np.asarray([False, False, True]))
    for one, other in zip(last.aligned.of(0), whole.aligned.of(2), strict=True):
        np.testing.assert_array_equal(one, other)
    twice = last.aligned.joined([last.aligned, whole.aligned])
    np.testing.assert_array_equal(twice.of(3)[1], whole.aligned.of(2)[1])
    assert len({whole.digest(), last.digest(), cut.digest()}) == 3


def test_a_batch_has_spans_where_their_first_token_is_predicted(tokenizers: dict[str, Tokenizer]) -> None:
    examples = aligner(tokenizers, "chatml", "llama2").examples([asked(answer) for answer in ANSWERS], 100, 100)
    loader = Loader(examples, 2, 0)
    batch, order = loader.batch(0), loader.order(0)
    assert batch["teacher_tokens"].shape == (2, loader.teacher_length)
    for row, example in enumerate(order):
        ids, (theirs, spans) = examples[example][0], examples.aligned.of(example)
        for number, (own, count, other, their_count, kind) in enumerate(spans, 1):
            place, their_place = batch["span"][row] == number, batch["teacher_span"][row] == number
            np.testing.assert_array_equal(batch["targets"][row, place], ids[own : own + count])
            np.testing.assert_array_equal(
                batch["teacher_targets"][row, their_place], theirs[other : other + their_count]
            )
            assert set(batch["span_kind"][row, place]) == {kind}
            assert batch["mask"][row, place].all()
            begins = batch["span_begins"][row] * place
            assert begins.sum() == 1
            assert batch["teacher_targets"][row, batch["teacher_at"][row, begins.argmax()]] == theirs[other]
        assert batch["span"][row].max() == len(spans) == batch["span_begins"][row].sum()
