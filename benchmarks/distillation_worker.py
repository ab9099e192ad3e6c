"""One trainer of benchmarks/distillation.py, a process of its own: it does a step when a line comes.

    python benchmarks/distillation_worker.py ours|torch|trl FOLDER

FOLDER has the models A (student) and B (teacher), each as `hf/` and as `params/`. Each line on stdin is answered by
a line of JSON: seconds on the clock (wall) and of both cores (cpu), tokens, and the peak of the process's resident
memory (GB). Forward KL at temperature 1, on the same random tokens for all.
"""

import os
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
from answering import tell, timed

ROWS, LENGTH, VOCABULARY = 8, 256, 32000
LEARNING_RATE = 1e-4


def token_ids() -> np.ndarray:
    return np.random.default_rng(0).integers(3, VOCABULARY, (ROWS, LENGTH + 1))


def stored(folder: Path):
    """Loaders of 400 completions whose likeliest 32 tokens are stored, random ones: with these, and without."""
    from dataclasses import replace

    from distill.data.loader import Loader
    from distill.data.schema import CompletionsMetadata, write_completions
    from distill.data.stored import Wanted, stored_examples
    from distill.data.topk import Told, as_text, packed

    random, rows = np.random.default_rng(1), []
    for i in range(400):
        logprobs = -np.sort(random.exponential(3, (LENGTH, 32)), axis=1) - 3.5
        told = {
            "logsumexp": random.normal(size=LENGTH), "top_ids": random.integers(3, 16000, (LENGTH, 32)),
            "top_logprobs": logprobs,
        }  # fmt: skip
        rows.append(
            {
                "prompt_id": f"{i:016x}", "sample": 0, "prompt": [], "completion": [], "messages": [],
                "prompt_token_ids": [1], "completion_token_ids": random.integers(16000, VOCABULARY, LENGTH).tolist(),
                "logprobs": random.normal(-9, 1, LENGTH).tolist(), "finish_reason": "length", "reference": None,
                "logits": as_text(packed(told, VOCABULARY)),
            }
        )  # fmt: skip
    metadata = CompletionsMetadata(
        teacher="B",
        tokenizer_hash="",
        sampling={"max_target_length": LENGTH + 1},
        seed=0,
        logits=Told(32, 0, VOCABULARY),
    )
    write_completions(folder / "0000.parquet", rows, metadata)
    examples = stored_examples([Wanted([folder / "0000.parquet"])], "top", 32, folder / "stored", LENGTH + 1)
    told, plain = examples, replace(examples, logits=None)
    return {"topk": Loader(told, ROWS, 0, LENGTH), "plain": Loader(plain, ROWS, 0, LENGTH)}


def ours(folder: Path) -> None:
    """`step`: with the teacher; `sft`: without; `topk`: from stored logits; `plain`: the same rows without these."""
    from distill.parallel.runtime import start

    start()
    import jax

    from distill.config.stages import Stage
    from distill.parallel.mesh import make_mesh
    from distill.training.optimizer import make_optimizer
    from distill.training.state import initial_state
    from distill.training.step import make_step
    from distill.training.teacher import load_teacher

    stages = {
        name: Stage(
            init="-", objective=objective, steps=1000, batch_size=ROWS, learning_rate=LEARNING_RATE, remat="dots"
        )
        for name, objective in (("step", "logits"), ("sft", "sft"), ("topk", "topk_logits"))
    }
    mesh, stage = make_mesh(), stages["step"]
    optimizer = make_optimizer(stage, 1000)
    config, state, where, _ = initial_state(folder / "A/params", stage, optimizer, mesh)
    teacher, ids = load_teacher(folder / "B/params", stage, mesh), token_ids().astype(np.int32)
    runs = {
        "step": make_step(config, stage, optimizer, mesh, where, teacher=teacher),
        "sft": make_step(config, stages["sft"], optimizer, mesh, where),
        "topk": make_step(config, stages["topk"], optimizer, mesh, where),
    }
    runs["plain"] = runs["sft"]
    loaders, count = stored(folder), 0
    batch = {
        "tokens": ids[:, :-1], "targets": ids[:, 1:], "mask": np.ones((ROWS, LENGTH), np.float32),
        "segment_ids": np.ones((ROWS, LENGTH), np.int32),
        "positions": np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1)),
    }  # fmt: skip

    def step(name: str) -> int:
        nonlocal state, count
        count += 1
        given = loaders[name].batch(count) if name in loaders else batch
        state, metrics = runs[name](state, given)
        jax.block_until_ready((state, metrics))
        return ROWS * LENGTH

    step("step")
    tell(versions={package: version(package) for package in ("jax", "optax")})
    for line in sys.stdin:
        tell(**timed(partial(step, line.strip())))


def torch_model(folder: Path):
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(os.cpu_count())
    return AutoModelForCausalLM.from_pretrained(folder / "hf", dtype=torch.float32)


def bare_torch(folder: Path) -> None:
    import torch
    from torch.nn import functional

    student, teacher = torch_model(folder / "A").train(), torch_model(folder / "B").eval()
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE)
    ids = torch.from_numpy(token_ids()[:, :LENGTH])

    def step() -> int:
        with torch.no_grad():
            wanted = functional.log_softmax(teacher(input_ids=ids, use_cache=False).logits, dim=-1)
        found = functional.log_softmax(student(input_ids=ids, use_cache=False).logits, dim=-1)
        loss = functional.kl_div(found.flatten(0, 1), wanted.flatten(0, 1), reduction="batchmean", log_target=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return ids.numel()

    step()
    tell(versions={"torch": torch.__version__, "transformers": version("transformers")})
    for _ in sys.stdin:
        tell(**timed(step))


def trl(folder: Path) -> None:
    """GKDTrainer on given data (λ = 0, β = 0: forward KL) waits for a line before each of its steps."""
    import datasets
    import torch
    from transformers import AutoTokenizer
    from trl.experimental.gkd import GKDConfig, GKDTrainer
    from trl_steps import Gate

    tokenizer = AutoTokenizer.from_pretrained(folder / "A/hf", pad_token="<unk>")
    steps = 200
    rows = [row.tolist() for row in token_ids()[:, :LENGTH]] * steps

    def collate(examples: list[dict]) -> dict:
        ids = torch.tensor([example["input_ids"] for example in examples])
        ones = torch.ones_like(ids)
        return {"input_ids": ids, "attention_mask": ones, "labels": ids.clone(),
                "prompts": ids[:, :1], "prompt_attention_mask": ones[:, :1]}  # fmt: skip

    settings = GKDConfig(
        output_dir=str(folder / "trl"), per_device_train_batch_size=ROWS, max_steps=steps, max_length=LENGTH,
        learning_rate=LEARNING_RATE, max_grad_norm=1.0, use_cpu=True, bf16=False, fp16=False, lmbda=0.0, beta=0.0,
        gradient_checkpointing=False, report_to=[], save_strategy="no", logging_steps=steps, disable_tqdm=True,
    )  # fmt: skip
    GKDTrainer(
        model=torch_model(folder / "A"), teacher_model=torch_model(folder / "B"), args=settings, data_collator=collate,
        train_dataset=datasets.Dataset.from_dict({"input_ids": rows}), processing_class=tokenizer,
        callbacks=[Gate(ROWS * LENGTH)],
    ).train()  # fmt: skip


if __name__ == "__main__":
    {"ours": ours, "torch": bare_torch, "trl": trl}[sys.argv[1]](Path(sys.argv[2]))
