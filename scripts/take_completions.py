"""Take the completions that one batch of prompts came with, in place of generating them."""

from pathlib import Path

import click

from distill.data.own import take_completions
from distill.errors import explained

PATH = click.Path(path_type=Path)


@click.command(help=__doc__)
@click.option("--teacher", type=PATH, required=True, help="params folder, for its tokenizer")
@click.option("--prompts", type=PATH, required=True, help="a batch's JSONL file")
@click.option("--out", type=PATH, required=True, help="Parquet file to write")
def main(teacher: Path, prompts: Path, out: Path) -> None:
    with explained():
        click.echo(take_completions(teacher, prompts, out))


if __name__ == "__main__":
    main()
