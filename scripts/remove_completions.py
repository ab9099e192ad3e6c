"""Remove the completions of a run whose dataset is published."""

from pathlib import Path

import click

from distill.errors import explained
from distill.publishing.removal import remove_completions

PATH = click.Path(path_type=Path)


@click.command(help=__doc__)
@click.option("--dataset", type=PATH, required=True, help="dataset folder that is published")
@click.option("--completions", type=PATH, required=True, help="folder of the batches' files")
@click.option("--work", type=PATH, required=True, help="folder of the journals that batches share")
@click.option("--out", type=PATH, required=True, help="record to write")
@click.argument("records", type=PATH, nargs=-1, required=True)
def main(dataset: Path, completions: Path, work: Path, out: Path, records: tuple[Path, ...]) -> None:
    with explained():
        click.echo(remove_completions(dataset, records, completions, work, out))


if __name__ == "__main__":
    main()
