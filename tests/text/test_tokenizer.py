import json
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer
from tokenizers_for_tests import CHATML, ZEPHYR, byte_tokenizer, llama2_tokenizer

from distill.errors import DistillError
from distill.text.chat import render
from distill.text.tokenizer import is_plain, load_tokenizer


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_eos_ids_are_those_of_tokenizer_generation_and_model(tmp_path: Path) -> None:
    byte_tokenizer(tmp_path, generation_eos=[4, 2])
    (tmp_path / "config.json").write_text('{"eos_token_id": 5}')
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.eos_ids == (2, 4, 5)
    assert tokenizer.eos_texts == ("</s>", "<|im_end|>", "<|eot|>")
    assert (tokenizer.eos_id, tokenizer.bos_id, tokenizer.pad_id) == (2, 1, None)


def test_real_vocab_counts_tokens_that_were_added(tmp_path: Path) -> None:
    byte_tokenizer(tmp_path)
    before = load_tokenizer(tmp_path).real_vocab
    rules = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    rules.add_tokens([AddedToken("<new>")])
    rules.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).real_vocab == before + 1


def test_decode_gives_back_text_with_its_spaces_and_without_special_tokens(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(byte_tokenizer(tmp_path, clean_up_tokenization_spaces=True))
    text = " it 's  here , né 日本 \n"
    assert tokenizer.decode([1, *tokenizer.encode(text, special=False), 2]) == text


def test_special_is_what_the_tokenizer_adds(tmp_path: Path) -> None:
    bare = load_tokenizer(byte_tokenizer(tmp_path / "a", around="<s> $A"))
    closed = load_tokenizer(byte_tokenizer(tmp_path / "b", around="<s> $A </s>"))
    ids = bare.encode("paris", special=False)
    assert bare.encode("paris", special=True) == [1, *ids]
    assert closed.encode("paris", special=True) == [1, *ids, 2]
    assert (bare.adds_eos, closed.adds_eos) == (False, True)


def test_the_hash_covers_what_decides_ids_and_rendering(tmp_path: Path) -> None:
    folder = byte_tokenizer(tmp_path)
    config, rules, template = (folder / n for n in ("tokenizer_config.json", "tokenizer.json", "chat_template.jinja"))
    known = load_tokenizer(folder).hash
    rules.write_text(json.dumps(json.loads(rules.read_text()), indent=1))
    assert load_tokenizer(folder).hash == known, "layout decides nothing"
    edit(rules, truncation={"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0})
    assert load_tokenizer(folder).hash == known, "we never truncate"
    hashes = {known}
    template.write_text(ZEPHYR)
    hashes.add(load_tokenizer(folder).hash)
    edit(config, eos_token="<|im_end|>")
    hashes.add(load_tokenizer(folder).hash)
    edit(rules, post_processor=None)
    hashes.add(load_tokenizer(folder).hash)
    edit(rules, normalizer={"type": "Lowercase"})
    hashes.add(load_tokenizer(folder).hash)
    assert len(hashes) == 5


def test_the_hash_is_the_same_in_another_process_and_folder(tmp_path: Path) -> None:
    byte_tokenizer(tmp_path / "a")
    byte_tokenizer(tmp_path / "b")
    script = (
        "import sys, pathlib; from distill.text.tokenizer import is_plain, load_tokenizer;"
        "print(load_tokenizer(pathlib.Path(sys.argv[1])).hash)"
    )
    run = subprocess.run([sys.executable, "-c", script, tmp_path / "b"], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == load_tokenizer(tmp_path / "a").hash
    assert run.stderr == "", "transformers' advice about PyTorch is noise here"


def test_tokenizer_json_is_taken_word_for_word(tmp_path: Path) -> None:
    """AutoTokenizer of transformers 5 rebuilds a LlamaTokenizer: the `▁` before [INST] was lost."""
    tokenizer = load_tokenizer(llama2_tokenizer(tmp_path))
    text = render(tokenizer, [{"role": "user", "content": "paris"}], ask=True)
    assert tokenizer.hf.convert_ids_to_tokens(tokenizer.encode(text, special=False))[:3] == [
        "<s>",
        "▁[",
        "INST",
    ]
    rules = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.encode("what is the capital", special=True) == rules.encode("what is the capital").ids


PLAIN = """
import sys
from pathlib import Path
from types import SimpleNamespace
from distill.text.tokenizer import is_plain, load_tokenizer

known = SimpleNamespace(plain_tokenizer=True, tokenizer_hash="h", real_vocab=300, eos_ids=[2])
tokenizer = load_tokenizer(Path(sys.argv[1]), known)
ids = tokenizer.encode(sys.argv[2], special=True)
print(ids, tokenizer.decode(ids), tokenizer.decode(ids, special=True), tokenizer.eos_texts, tokenizer.complete)
assert "transformers" not in sys.modules
print(tokenizer.chat_template, tokenizer.complete)
"""


def test_a_plain_tokenizer_needs_no_transformers_but_for_templates(tmp_path: Path) -> None:
    whole = load_tokenizer(byte_tokenizer(tmp_path, template=CHATML, around="<s> $A"))
    edit(
        tmp_path / "tokenizer.json",
        truncation={"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
    )
    assert is_plain(whole)
    text = "a long <|im_end|> né text"
    command = [sys.executable, "-c", PLAIN, str(tmp_path), text]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    ids = whole.encode(text, special=True)
    known = whole.decode(ids), whole.decode(ids, special=True), whole.eos_texts[:1]
    assert told.startswith(" ".join(map(str, (ids, *known, False))))
    assert told.rstrip().endswith(f"{CHATML.rstrip()} True")


def test_rules_that_put_nothing_around_a_text_are_plain_without_saying_so(tmp_path: Path) -> None:
    edit(byte_tokenizer(tmp_path) / "tokenizer.json", post_processor=None)
    tokenizer = load_tokenizer(tmp_path)
    assert is_plain(tokenizer)
    assert tokenizer.encode("paris", special=True) == tokenizer.encode("paris", special=False)


@pytest.mark.parametrize(
    "changes", [{"extra_special_tokens": ["<new>"]}, {"split_special_tokens": True}, {"mask_token": "a"}]
)
def test_what_stands_beside_tokenizer_json_makes_a_tokenizer_less_than_plain(tmp_path: Path, changes: dict) -> None:
    edit(byte_tokenizer(tmp_path) / "tokenizer_config.json", **changes)
    assert not is_plain(load_tokenizer(tmp_path))


def test_code_in_the_folder_is_not_run(tmp_path: Path) -> None:
    folder = byte_tokenizer(tmp_path)
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: ...\n")
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "own.Own"]}, tokenizer_class="Own")
    (folder / "config.json").write_text('{"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}')
    assert load_tokenizer(folder).encode("paris", special=True)
    assert not (tmp_path / "ran").exists()


def test_a_template_in_the_configuration_is_found(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(byte_tokenizer(tmp_path, None, chat_template=CHATML))
    assert tokenizer.hf.chat_template == CHATML


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer (looked for tokenizer.json"),
        (lambda folder: (folder / "tokenizer.json").write_text('{"version": "1.0", "mod'), "cannot be read"),
        (lambda folder: edit(folder / "tokenizer_config.json", eos_token=None), "has no EOS token"),
    ],
)
def test_a_folder_that_is_no_tokenizer_is_named(tmp_path: Path, spoil, complaint: str) -> None:
    spoil(byte_tokenizer(tmp_path))
    with pytest.raises(DistillError, match=r"^[^\n]*$") as refusal:
        load_tokenizer(tmp_path)
    assert complaint in str(refusal.value)
    assert str(tmp_path) in str(refusal.value)


def test_a_sentencepiece_model_without_its_library_says_what_to_bring(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\x00not a model")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer", "eos_token": "</s>"}')
    with pytest.raises(DistillError, match=r"bring a tokenizer\.json"):
        load_tokenizer(tmp_path)
