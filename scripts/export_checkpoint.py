"""Write a student as a Hugging Face folder that transformers loads."""

from pathlib import Path

import click

from distill.checkpoints.convert import export_checkpoint
from distill.errors import explained

PATH = click.Path(path_type=Path)


@click.command(help=__doc__)
@click.option("--params", type=PATH, required=True, help="params folder")
@click.option("--out", type=PATH, required=True, help="folder to make")
def main(params: Path, out: Path) -> None:
    with explained():
        export_checkpoint(params, out)
        click.echo(f"{out}: {', '.join(sorted(file.name for file in out.iterdir()))}")


if __name__ == "__main__":
    main()
