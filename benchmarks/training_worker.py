"""One trainer of benchmarks/training.py, a process of its own: it does a step when a line comes, and tells the time.

    python benchmarks/training_worker.py ours|torch|trl FOLDER

FOLDER has the model as `hf/` and as `params/`. Lines on stdin: `step`; ours knows `packed` and `padded` rows of the
log-normal mix and `save` too. Each is answered by a line of JSON: seconds on the clock (wall) and of both cores
(cpu), useful tokens, and the peak of the process's resident memory (GB).
"""

import os
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from answering import tell, timed

ROWS, LENGTH, VOCABULARY = 8, 256, 32000
LEARNING_RATE = 1e-4


def token_ids() -> np.ndarray:
    return np.random.default_rng(0).integers(3, VOCABULARY, (ROWS, LENGTH + 1))


def log_normal_lengths(count: int) -> np.ndarray:
    """Of examples, in tokens: log-normal with a mean of about 80, at most 256."""
    lengths = np.random.default_rng(1).lognormal(np.log(80) - 0.7**2 / 2, 0.7, count)
    return np.clip(lengths, 8, LENGTH).astype(np.int64)


def ours(folder: Path) -> None:
    from distill.parallel.runtime import start

    start()
    import jax

    from distill.config.stages import Stage
    from distill.data.loader import Loader
    from distill.data.masking import Examples
    from distill.parallel.mesh import make_mesh
    from distill.training.checkpoints import Steps
    from distill.training.optimizer import make_optimizer
    from distill.training.state import initial_state
    from distill.training.step import make_step

    stage = Stage(init="-", steps=1000, batch_size=ROWS, learning_rate=LEARNING_RATE, remat="dots")
    mesh = make_mesh()
    optimizer = make_optimizer(stage, 1000)
    config, state, where, _ = initial_state(folder / "params", stage, optimizer, mesh)
    run, ids = make_step(config, stage, optimizer, mesh, where), token_ids().astype(np.int32)
    batch = {
        "tokens": ids[:, :-1], "targets": ids[:, 1:], "mask": np.ones((ROWS, LENGTH), np.float32),
        "segment_ids": np.ones((ROWS, LENGTH), np.int32),
        "positions": np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1)),
    }  # fmt: skip
    offsets = np.concatenate([[0], np.cumsum(log_normal_lengths(2000))])
    random = np.random.default_rng(2).integers(3, VOCABULARY, offsets[-1]).astype(np.int32)
    mix = Examples(random, np.ones(len(random), np.uint8), offsets, {})
    loaders = {name: Loader(mix, ROWS, 0, LENGTH, packing=name == "packed") for name in ("packed", "padded")}
    count = dict.fromkeys(loaders, 0)

    def step(batch: dict) -> int:
        nonlocal state
        state, metrics = run(state, batch)
        jax.block_until_ready((state, metrics))
        return int((batch["segment_ids"] > 0).sum())

    def from_mix(name: str) -> int:
        count[name] += 1
        return step(loaders[name].batch(count[name]))

    step(batch)
    tell(versions={package: version(package) for package in ("jax", "optax")}, device=jax.devices()[0].device_kind)
    with Steps(folder / "steps", {}, 1) as kept:
        for number, line in enumerate(sys.stdin, 1):
            asked = line.strip()
            if asked == "save":
                found = timed(lambda number=number: kept.save(number, state, {}) or 0)
                kept.finish()
                tell(**found)
            else:
                tell(**timed(lambda asked=asked: step(batch) if asked == "step" else from_mix(asked)))


def torch_model(folder: Path):
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(os.cpu_count())
    return AutoModelForCausalLM.from_pretrained(folder / "hf", dtype=torch.float32).train()


def bare_torch(folder: Path) -> None:
    import torch

    model = torch_model(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    ids = torch.from_numpy(token_ids()[:, :LENGTH])

    def step() -> int:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return ids.numel()

    step()
    tell(versions={"torch": torch.__version__, "transformers": version("transformers")})
    for _ in sys.stdin:
        tell(**timed(step))


def trl(folder: Path) -> None:
    """SFTTrainer waits for a line before each of its steps."""
    import datasets
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer
    from trl_steps import Gate

    names = ["<unk>", "<s>", "</s>", *(f"t{i}" for i in range(3, VOCABULARY))]
    rules = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=rules, bos_token="<s>", eos_token="</s>", pad_token="<unk>", unk_token="<unk>"
    )
    steps = 200
    rows = [row.tolist() for row in token_ids()[:, :LENGTH]] * steps

    settings = SFTConfig(
        output_dir=str(folder / "trl"), per_device_train_batch_size=ROWS, max_steps=steps, max_length=LENGTH,
        learning_rate=LEARNING_RATE, max_grad_norm=1.0, use_cpu=True, bf16=False, fp16=False,
        gradient_checkpointing=False, report_to=[], save_strategy="no", logging_steps=steps, disable_tqdm=True,
    )  # fmt: skip
    data = datasets.Dataset.from_dict({"input_ids": rows})
    SFTTrainer(
        model=torch_model(folder),
        args=settings,
        train_dataset=data,
        processing_class=tokenizer,
        callbacks=[Gate(ROWS * LENGTH)],
    ).train()


if __name__ == "__main__":
    {"ours": ours, "torch": bare_torch, "trl": trl}[sys.argv[1]](Path(sys.argv[2]))
