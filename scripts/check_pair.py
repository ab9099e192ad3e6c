"""Compare the tokenizers of teacher and student, and say what each stage may do with them."""

from pathlib import Path

import click

from distill.errors import explained
from distill.files import write_json
from distill.text.compatibility import compare, must_be_open

PATH = click.Path(path_type=Path)


@click.command(help=__doc__)
@click.option("--teacher", type=PATH, required=True, help="params folder")
@click.option("--student", type=PATH, required=True, help="params folder")
@click.option("--objective", "objectives", multiple=True, help="{stage}={objective} that must be open to the pair")
@click.option("--out", type=PATH, required=True, help="JSON file to write")
def main(teacher: Path, student: Path, objectives: tuple[str, ...], out: Path) -> None:
    with explained():
        found = compare(teacher, student)
        must_be_open(dict(pair.split("=", 1) for pair in objectives), found)
        write_json(out, found)


if __name__ == "__main__":
    main()
