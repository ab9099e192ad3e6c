"""Write the logits of the reference implementation (transformers with torch) for random tokens."""

from pathlib import Path

import click

from distill.errors import explained
from distill.evaluation.reference import make_reference

PATH = click.Path(path_type=Path)


@click.command(help=__doc__)
@click.option("--source", type=PATH, required=True, help="Hugging Face folder")
@click.option("--out", type=PATH, required=True, help="npz to write: input_ids [B, T] and logits [B, T, V]")
def main(source: Path, out: Path) -> None:
    with explained():
        make_reference(source, out)
        click.echo(f"{source}: reference logits in {out}")


if __name__ == "__main__":
    main()
