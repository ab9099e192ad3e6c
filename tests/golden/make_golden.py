"""Make the golden files: tiny random checkpoints and the logits that `transformers` gives for them.

    pip install .[parity]
    python tests/golden/make_golden.py [NAME ...]

`tests/golden/{name}/` gets config.json, model.safetensors and golden.npz, in float32 with eager attention;
README.md beside this file tells of the arrays. A checkpoint is refused when one of its features does not show
in the logits, an expert is never used, or a rounding error would grow past what the tests tolerate.
"""

import re
import shutil
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from families import BASE, EXPERTS, FAMILIES, Family
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

HERE = Path(__file__).resolve().parent
# No fused kernels: grouped products want rows of 16 bytes, and each kernel rounds in its own way.
PLAIN = {"attn_implementation": "eager", "experts_implementation": "eager", "dtype": torch.float32}
LENGTH, PADDED, REAL, DOCUMENTS = 104, 64, (51, 37), (41, 55)
FELT = 0.05  # a feature that moves no logit by this much is not tested
EPSILON_FELT = 2e-3
STEADY = 2e-5  # a relative error of 1e-7 in every weight may move logits by this much


@click.command(help=__doc__)
@click.argument("names", nargs=-1)
def main(names: tuple[str, ...]) -> None:
    torch.set_grad_enabled(False)
    for name in names or FAMILIES:
        report = make(FAMILIES[name], HERE / name, seed=list(FAMILIES).index(name))
        click.echo(f"{name}: {report}")


def make(family: Family, out: Path, seed: int) -> str:
    """Write one folder; return a line about it."""
    model = build(family)
    generator = torch.Generator().manual_seed(seed)
    fill(model, generator)
    ids = torch.randint(3, BASE["vocab_size"], (2, LENGTH), generator=generator)
    arrays = {"input_ids": ids, "logits": model(input_ids=ids, use_cache=False).logits}
    arrays |= padded(model, ids) | packed(model, ids)
    check(family, model, ids, arrays["logits"])
    shutil.rmtree(out, ignore_errors=True)
    model.save_pretrained(out)
    (out / "generation_config.json").unlink(missing_ok=True)
    reload(out, ids, arrays["logits"])
    types = {torch.int64: np.int32, torch.float32: np.float32}
    stored = {name: array.numpy().astype(types[array.dtype]) for name, array in arrays.items()}
    np.savez_compressed(out / "golden.npz", **stored)
    size = sum(path.stat().st_size for path in out.iterdir())
    return f"logits of deviation {arrays['logits'].std():.2f}, {size / 1000:.0f} kB"


def build(family: Family, **changed: Any) -> PreTrainedModel:
    """The model with its own random weights, in float32."""
    settings = BASE | family.config | changed
    config = AutoConfig.for_model(family.model_type, **settings)
    return AutoModelForCausalLM.from_config(config, **PLAIN).eval()


def fill(model: PreTrainedModel, generator: torch.Generator) -> None:
    """Random weights of a size that lets every part speak: library defaults give nearly uniform logits."""
    tied = model.config.tie_word_embeddings
    centre = 0.0 if "gemma" in model.config.model_type else 1.0  # Gemma adds one to the weights of its norms
    tensors = dict(model.named_parameters()) | {n: b for n, b in model.named_buffers() if n.endswith("_bias")}
    for name, tensor in tensors.items():
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("e_score_correction_bias"):
            tensor.copy_(0.1 * noise)
        elif tensor.ndim == 1:
            tensor.copy_(centre + 0.3 * noise if "norm" in name else 0.3 * noise)
        elif "embed_tokens" in name:
            tensor.copy_(noise * (2 / tensor.shape[-1] ** 0.5 if tied else 1.0))
        elif "lm_head" in name:
            tensor.copy_(noise * 2 / tensor.shape[-1] ** 0.5)
        else:
            tensor.copy_(noise / tensor.shape[-1] ** 0.5)


def padded(model: PreTrainedModel, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Row 0 padded on the right, row 1 on the left, positions counted from the first real token."""
    right, left = REAL
    mask, inputs = torch.zeros(2, 2, PADDED, dtype=torch.int64)
    mask[0, :right], mask[1, -left:] = 1, 1
    inputs[0, :right], inputs[1, -left:] = ids[0, :right], ids[1, :left]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(input_ids=inputs, attention_mask=mask, position_ids=positions, use_cache=False).logits
    logits = logits * mask[..., None]  # what stands at padding means nothing
    return {"padded_input_ids": inputs, "padded_attention_mask": mask, "padded_position_ids": positions,
            "padded_logits": logits}  # fmt: skip


def packed(model: PreTrainedModel, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Two documents in one row; no token sees the other one's."""
    inputs = torch.cat([ids[row, :length] for row, length in enumerate(DOCUMENTS)])[None]
    positions = torch.cat([torch.arange(length) for length in DOCUMENTS])[None]
    segments = torch.cat([torch.full((length,), row + 1) for row, length in enumerate(DOCUMENTS)])[None]
    logits = model(input_ids=inputs, position_ids=positions, use_cache=False).logits
    return {"packed_input_ids": inputs, "packed_position_ids": positions, "packed_segment_ids": segments,
            "packed_logits": logits}  # fmt: skip


def check(family: Family, model: PreTrainedModel, ids: torch.Tensor, logits: torch.Tensor) -> None:
    """Refuse a checkpoint that would let a wrong implementation pass, or a right one fail."""
    off = family.felt | {"rms_norm_eps": {"rms_norm_eps": 1e-6}}
    for feature, switch in off.items():
        weights = dict(model.state_dict())
        if isinstance(switch, str):
            weights |= {name: torch.zeros_like(w) for name, w in weights.items() if re.search(switch, name)}
        other = build(family, **(switch if isinstance(switch, dict) else {}))
        other.load_state_dict(weights)
        moved = difference(other, ids, logits)
        if moved < (EPSILON_FELT if feature == "rms_norm_eps" else FELT):
            raise click.ClickException(f"{feature} moves no logit by more than {moved:.4f}")
    used: dict[int, int] = {}

    def note(router: torch.nn.Module, _: Any, output: tuple[torch.Tensor, ...]) -> None:
        used[id(router)] = len(output[2].unique())

    routers = [module for module in model.modules() if hasattr(module, "top_k") and hasattr(module, "weight")]
    hooks = [router.register_forward_hook(note) for router in routers]
    model(input_ids=ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    if any(number < EXPERTS for number in used.values()):
        raise click.ClickException(f"of {EXPERTS} experts only {sorted(used.values())} are used")
    other = build(family)
    other.load_state_dict({n: w * (1 + 1e-7 * torch.randn_like(w)) for n, w in model.state_dict().items()})
    if (moved := difference(other, ids, logits)) > STEADY:
        raise click.ClickException(f"rounding moves a logit by {moved:.6f}: take another seed")


def reload(folder: Path, ids: torch.Tensor, logits: torch.Tensor) -> None:
    """What was saved must be what was recorded, under the names that the families' own checkpoints use."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **PLAIN)
    if any(info.values()) or difference(model.eval(), ids, logits) > 0:
        raise click.ClickException(f"{folder} loads as another model: {info}")


def difference(model: PreTrainedModel, ids: torch.Tensor, logits: torch.Tensor) -> float:
    """The largest difference between the model's logits and these."""
    return float((model(input_ids=ids, use_cache=False).logits - logits).abs().max())


if __name__ == "__main__":
    main()
