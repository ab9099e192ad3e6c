"""Compare the tokenizers of teacher and student, and say what each stage may do with them."""

from pathlib import Path

import click

from distill.errors import explained
from distill.files import write_json
from distill.text.compatibility import compare

PATH = click.Path(path_type=Path)


@click.command(help=__doc__)
@click.option("--teacher", type=PATH, required=True, help="params folder")
@click.option("--student", type=PATH, required=True, help="params folder")
@click.option("--out", type=PATH, required=True, help="JSON file to write")
def main(teacher: Path, student: Path, out: Path) -> None:
    with explained():
        write_json(out, compare(teacher, student))


if __name__ == "__main__":
    main()
