"""Compare a Hugging Face checkpoint, as imported, with logits of the reference implementation."""

from pathlib import Path

import click

from distill.errors import DistillError, explained
from distill.evaluation.parity import check_parity
from distill.parallel.runtime import start

PATH = click.Path(path_type=Path)


@click.command(help=__doc__)
@click.option("--source", type=PATH, required=True, help="Hugging Face folder: config.json and safetensors")
@click.option("--reference", type=PATH, required=True, help="npz: input_ids [B, T] and logits [B, T, V]")
@click.option("--out", type=PATH, required=True, help="report to write, JSON")
@click.option("--atol", type=float, default=1e-3, show_default=True, help="largest |Δlogit| allowed")
@click.option("--max-kl", type=float, default=1e-5, show_default=True, help="largest KL a token allowed, nats")
def main(source: Path, reference: Path, out: Path, atol: float, max_kl: float) -> None:
    with explained():
        start()
        parity = check_parity(source, reference, out, atol=atol, max_kl=max_kl)
        click.echo(f"{source}: {parity}")
        if not parity.within(atol, max_kl):
            raise DistillError(
                f"{source} does not give the logits of {reference}: max |Δlogit| {parity.max_difference:.2e} "
                f"(--atol {atol:g}), max KL {parity.max_kl:.2e} (--max-kl {max_kl:g})"
            )


if __name__ == "__main__":
    main()
