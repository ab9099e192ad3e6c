"""What others prepare from the dataset as it is: TRL and axolotl learn from it what we do.

Run by `make test-trainers`, which installs them into an environment of its own.
"""

from pathlib import Path

import pytest
from tokenizers_for_tests import CHATML, LLAMA3, byte_tokenizer

from distill.config.dataset import Dataset
from distill.data.assemble import assemble
from distill.data.card import CardFacts
from distill.data.schema import CompletionsMetadata, write_completions
from distill.text.chat import examples_tokens
from distill.text.tokenizer import Tokenizer, load_tokenizer
from distill.text.turns import turns_tokens

pytestmark = [pytest.mark.trainers, pytest.mark.filterwarnings("default")]

CHATS = [
    (["what is the capital of france"], "paris is the capital"),
    (["who wrote hamlet", "shakespeare", "and when"], "it was 1600 or so"),
]


def dataset(folder: Path):
    """What `load_dataset` gives of a dataset with a system message, a history and two samples a prompt."""
    from datasets import load_dataset

    rows = []
    for i, (turns, answer) in enumerate(CHATS):
        roles = ["user", "assistant"] * len(turns)
        prompt = [{"role": "system", "content": "be short"}]
        prompt += [{"role": role, "content": text} for role, text in zip(roles, turns, strict=False)]
        for sample in range(2):
            completion = [{"role": "assistant", "content": f"{answer} {sample}"}]
            rows.append({
                "prompt_id": f"p{i}", "sample": sample, "prompt": prompt, "completion": completion,
                "messages": prompt + completion, "prompt_token_ids": [1], "completion_token_ids": [2],
                "logprobs": [-1.0], "finish_reason": "stop", "reference": None,
            })  # fmt: skip
    write_completions(folder / "0000.parquet", rows, CompletionsMetadata("a", "b", {}, 0))
    index = {"source": {"source": "x"}, "batches": {"0000": {"read": 2, "kept": 2, "dropped": {}}}}
    assemble([folder / "0000.parquet"], index, Dataset(), 2, CardFacts("r", "t", None, None), folder / "dataset")
    return load_dataset(str(folder / "dataset"), split="train", cache_dir=str(folder / "cache"))


def assert_ours(tokenizer: Tokenizer, theirs: list[int], ours: list[int]) -> None:
    """But for what the template writes behind the EOS, which we leave out."""
    assert theirs[: len(ours)] == ours
    assert tokenizer.hf.decode(theirs[len(ours) :]).strip() == ""


@pytest.fixture(params=[(CHATML, "<|im_end|>"), (LLAMA3, "<|eot|>")], ids=["chatml", "llama3"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    template, eos = request.param
    return load_tokenizer(byte_tokenizer(tmp_path / "tokenizer", template, eos=eos, pad="<unk>"))


@pytest.mark.parametrize("columns", ["prompt and completion", "messages"])
def test_trl_has_our_ids_and_mask(tmp_path: Path, tokenizer: Tokenizer, columns: str) -> None:
    import trl
    from transformers import LlamaConfig, LlamaForCausalLM

    rows = dataset(tmp_path)
    given = rows if columns != "messages" else rows.select_columns(["messages"])
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=512, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id,
    ))  # fmt: skip
    settings = trl.SFTConfig(output_dir=str(tmp_path / "out"), report_to="none", use_cpu=True, max_length=None)
    trainer = trl.SFTTrainer(model, args=settings, train_dataset=given, processing_class=tokenizer.hf)
    prepared = list(trainer.train_dataset)
    ours = list(examples_tokens(tokenizer, [row["messages"] for row in rows], "tokenizer"))
    assert len(prepared) == len(ours) == 4
    for row, (ids, mask) in zip(prepared, ours, strict=True):
        assert_ours(tokenizer, row["input_ids"], ids)
        if columns != "messages":
            learned = row.get("completion_mask") or [int(label != -100) for label in row["labels"]]  # TRL 0, TRL 1
            assert learned[: len(mask)] == mask


def test_axolotl_has_our_ids_and_the_mask_of_all_assistant_turns(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """`datasets: [{path: …, type: chat_template}]` with nothing else said of the dataset."""
    from addict import Dict
    from axolotl import prompt_strategies

    said = {"train_on_inputs": False, "sequence_len": 4096, "chat_template": "tokenizer_default"}
    strategy = prompt_strategies.load("chat_template", tokenizer.hf, Dict(said), {"type": "chat_template"})
    rows = dataset(tmp_path)
    ours = list(turns_tokens(tokenizer, [row["messages"] for row in rows], "tokenizer"))
    for row, (ids, mask) in zip(rows, ours, strict=True):
        prepared = strategy.tokenize_prompt(row)
        assert_ours(tokenizer, prepared["input_ids"], ids)
        assert [int(label != -100) for label in prepared["labels"]][: len(mask)] == mask
