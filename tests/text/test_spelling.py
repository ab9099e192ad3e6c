"""What tokens write, for each way in which vocabularies do, and what two have in common."""

import json
from pathlib import Path

import pytest
from tokenizers_for_tests import CHATML, ZEPHYR, byte_tokenizer, llama2_tokenizer

from distill.text.spelling import END, shared_classes, spellings
from distill.text.tokenizer import Tokenizer, load_tokenizer


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("tokenizers")
    byte_tokenizer(folder / "bytes", CHATML, generation_eos=4)
    byte_tokenizer(folder / "zephyr", ZEPHYR, extra=("<new>",))
    llama2_tokenizer(folder / "pieces")
    return {path.name: load_tokenizer(path) for path in folder.iterdir()}


def written(tokenizer: Tokenizer) -> dict[str, object]:
    return dict(zip(tokenizer.hf.convert_ids_to_tokens(range(tokenizer.real_vocab)), spellings(tokenizer), strict=True))


def test_what_a_token_writes(tokenizers: dict[str, Tokenizer]) -> None:
    found = written(tokenizers["bytes"])
    assert (found["Ġcapital"], found["é"], found["Ċ"], found["!"]) == (b" capital", b"\xe9", b"\n", b"!")
    assert (found["<|user|>"], found["</s>"], found["<|im_end|>"]) == ("<|user|>", END, END)
    assert sorted(word for word in found.values() if isinstance(word, bytes) and len(word) == 1) == [
        bytes([byte]) for byte in range(256)
    ]
    found = written(tokenizers["pieces"])
    assert (found["▁[/"], found["▁"], found["INST"]) == (b" [/", b" ", b"INST")


def test_bytes_of_a_vocabulary_of_pieces(tokenizers: dict[str, Tokenizer], tmp_path: Path) -> None:
    llama2_tokenizer(tmp_path)
    rules = json.loads((tmp_path / "tokenizer.json").read_text())
    rules["model"] |= {"byte_fallback": True, "vocab": rules["model"]["vocab"] | {"<0xE2>": 90, "<0x61>": 91}}
    rules["decoder"]["decoders"].insert(1, {"type": "ByteFallback"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(rules))
    found = written(load_tokenizer(tmp_path))
    assert (found["<0xE2>"], found["<0x61>"], found["a"]) == (b"\xe2", b"a", b"a")
    shared = shared_classes(tokenizers["bytes"], load_tokenizer(tmp_path))
    ids = load_tokenizer(tmp_path).hf.convert_tokens_to_ids(["<0x61>", "a"])
    assert len(set(shared.student.of[ids])) == 1, "two tokens that write the same are of one class"
    assert b"\xe2" in shared.spelled


def test_classes_of_two_ways_to_write(tokenizers: dict[str, Tokenizer]) -> None:
    teacher, student = tokenizers["bytes"], tokenizers["pieces"]
    shared = shared_classes(teacher, student)

    def spelled(side: int, *tokens: str) -> list[object]:
        tokenizer = (teacher, student)[side]
        of = shared[side].of[tokenizer.hf.convert_tokens_to_ids(list(tokens))]
        return [shared.spelled[i] if i >= 0 else None for i in of]

    assert spelled(0, "paris", "Ġcapital", "Ġ", "<|im_end|>", "</s>") == [b"p", b" ", b" ", END, END]
    assert spelled(0, "<|user|>", "Ċ") == [None, None], "of these the other side has nothing"
    assert spelled(1, "▁[/", "INST", "</s>", "<s>") == [b" ", b"IN" if b"IN" in shared.spelled else b"I", END, "<s>"]
    for side in shared[:2]:
        assert side.of[side.roots].tolist() == list(range(len(shared.spelled)))
        assert not set(side.others) & set(side.roots)


def test_a_vocabulary_and_itself_have_all_in_common(tokenizers: dict[str, Tokenizer]) -> None:
    shared = shared_classes(tokenizers["zephyr"], tokenizers["zephyr"])
    assert shared.student.roots.tolist() == list(range(tokenizers["zephyr"].real_vocab))
    assert not len(shared.student.others)
