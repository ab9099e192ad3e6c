"""Twenty steps of fine-tuning as transformers and torch do them: the losses that ours are compared with.

pip install .[parity]
python tests/training/reference_run.py      # writes tests/golden/training_losses.json
"""

import json
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
CHECKPOINT, LOSSES = GOLDEN / "llama_gqa_tied", GOLDEN / "training_losses.json"
STAGE = {
    "steps": 20, "batch_size": 4, "learning_rate": 3e-3, "schedule": "cosine", "warmup_steps": 4,
    "final_learning_rate": 3e-4, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95, "clip_norm": 1.0,
}  # fmt: skip


def batches() -> list[dict[str, np.ndarray]]:
    """A batch a step [4, 32]: rows of 8 to 33 tokens padded on the right, of which the first few are the prompt."""
    random, out = np.random.default_rng(5), []
    for _ in range(STAGE["steps"]):
        batch = {name: np.zeros((4, 32), np.int32) for name in ("tokens", "targets", "positions", "segment_ids")}
        batch["mask"] = np.zeros((4, 32), np.float32)
        for row in range(4):
            n, prompt = int(random.integers(8, 33)), int(random.integers(1, 6))
            ids = random.integers(3, 80, n + 1)
            batch["tokens"][row, :n], batch["targets"][row, :n] = ids[:-1], ids[1:]
            batch["positions"][row, :n], batch["segment_ids"][row, :n] = np.arange(n), 1
            batch["mask"][row, prompt:n] = 1
        out.append(batch)
    return out


def torch_losses() -> list[float]:
    """Mean NLL of the learned tokens before each step: transformers' model, torch's AdamW and clip, in float32."""
    import torch
    from transformers import AutoModelForCausalLM, get_cosine_with_min_lr_schedule_with_warmup

    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32, attn_implementation="eager").train()
    plain = [weight for name, weight in model.named_parameters() if "norm" in name or name.endswith("bias")]
    matrices = [weight for name, weight in model.named_parameters() if not ("norm" in name or name.endswith("bias"))]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": STAGE["weight_decay"]}, {"params": plain, "weight_decay": 0.0}],
        lr=STAGE["learning_rate"],
        betas=(STAGE["beta1"], STAGE["beta2"]),
    )
    schedule = get_cosine_with_min_lr_schedule_with_warmup(
        optimizer, STAGE["warmup_steps"], STAGE["steps"], min_lr=STAGE["final_learning_rate"]
    )
    losses = []
    for batch in batches():
        ids, seen = torch.tensor(batch["tokens"]).long(), torch.tensor(batch["segment_ids"])
        logits = model(input_ids=ids, attention_mask=seen).logits
        learned = torch.tensor(batch["mask"]) > 0
        loss = torch.nn.functional.cross_entropy(logits[learned], torch.tensor(batch["targets"]).long()[learned])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), STAGE["clip_norm"])
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


if __name__ == "__main__":
    import torch
    import transformers

    made = {"torch": torch.__version__, "transformers": transformers.__version__, "losses": torch_losses()}
    LOSSES.write_text(json.dumps(made, indent=2) + "\n")
