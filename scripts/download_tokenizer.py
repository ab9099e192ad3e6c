"""Fetch the tokenizer of a model whose tokenizer lives elsewhere: from the Hub, or from a local folder."""

from pathlib import Path

import click

from distill.checkpoints.hub import download_tokenizer
from distill.config.models import Model
from distill.errors import explained

PATH = click.Path(path_type=Path)


@click.command(help=__doc__)
@click.option("--model", required=True, help="the model's settings, JSON")
@click.option("--out", type=PATH, required=True, help="folder to make")
def main(model: str, out: Path) -> None:
    with explained():
        wanted = Model.model_validate_json(model)
        commit = download_tokenizer(wanted.tokenizer, wanted.tokenizer_revision, out)
        click.echo(f"tokenizer of {wanted.tokenizer} at {commit or 'its folder'}: {out}")


if __name__ == "__main__":
    main()
