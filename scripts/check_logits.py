"""Compute a random sample of stored logits again, and fail where the teacher does not say what is stored."""

from pathlib import Path

import click

from distill.errors import explained
from distill.evaluation.stored import check_logits
from distill.parallel.runtime import start
from distill.parent import leave_with_parent

PATH = click.Path(path_type=Path)


@click.command(help=__doc__)
@click.option("--teacher", type=PATH, required=True, help="params folder")
@click.option("--rows", type=click.IntRange(1), default=64, show_default=True, help="completions to compute again")
@click.option("--seed", type=int, default=0, show_default=True, help="that they are drawn with")
@click.option("--out", type=PATH, required=True, help="report to write, JSON")
@click.argument("files", type=PATH, nargs=-1, required=True)
def main(teacher: Path, rows: int, seed: int, out: Path, files: tuple[Path, ...]) -> None:
    with explained():
        leave_with_parent()
        start()
        click.echo(check_logits(teacher, files, out, rows=rows, seed=seed))


if __name__ == "__main__":
    main()
