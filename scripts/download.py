"""Fetch a model's snapshot from the Hub."""

from pathlib import Path

import click

from distill.checkpoints.hub import download
from distill.config.models import Model
from distill.errors import explained

PATH = click.Path(path_type=Path)


@click.command(help=__doc__)
@click.option("--model", required=True, help="the model's settings, JSON")
@click.option("--out", type=PATH, required=True, help="folder to make")
def main(model: str, out: Path) -> None:
    with explained():
        wanted = Model.model_validate_json(model)
        commit = download(wanted.source, wanted.revision, out)
        click.echo(f"{wanted.source} at {commit}: {out}")


if __name__ == "__main__":
    main()
