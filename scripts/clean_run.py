"""Delete a run's folder. Models, which runs share, stay."""

from pathlib import Path

import click

from distill.cleaning import clean_run
from distill.errors import explained

PATH = click.Path(path_type=Path)


@click.command(help=__doc__)
@click.option("--results", type=PATH, default=Path("results"), show_default=True, help="the recipe's `results`")
@click.option("--run", required=True, help="the recipe's `run`")
def main(results: Path, run: str) -> None:
    with explained():
        click.echo(f"{results / run} is deleted: {clean_run(results, run) / 1e6:,.1f} MB are free")


if __name__ == "__main__":
    main()
