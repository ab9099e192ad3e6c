"""Let the teacher answer one batch of prompts."""

from pathlib import Path

import click

from distill.config import Generation
from distill.errors import explained
from distill.generation.run import generate_batch
from distill.parallel.runtime import start
from distill.parent import leave_with_parent

PATH = click.Path(path_type=Path)


@click.command(help=__doc__)
@click.option("--teacher", type=PATH, required=True, help="params folder")
@click.option("--prompts", type=PATH, required=True, help="a batch's JSONL file")
@click.option("--generation", required=True, help="the generation's settings, JSON")
@click.option("--out", type=PATH, required=True, help="Parquet file to write")
def main(teacher: Path, prompts: Path, generation: str, out: Path) -> None:
    with explained():
        leave_with_parent()
        start()
        click.echo(generate_batch(teacher, prompts, out, Generation.model_validate_json(generation)))


if __name__ == "__main__":
    main()
