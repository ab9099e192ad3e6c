"""Add the scores up: what share of the gap between student and teacher each stage recovered."""

from pathlib import Path

import click

from distill.errors import explained
from distill.evaluation.summary import summarize
from distill.files import write_json

PATH = click.Path(path_type=Path)


@click.command()
@click.option("--run", required=True, help="the run's name")
@click.option("--teacher", help="the teacher's name, if there is one")
@click.option("--student", required=True, help="the student's name")
@click.option("--stage", "stages", multiple=True, help="a stage's name; give each")
@click.option("--out", type=PATH, required=True, help="JSON file to write")
@click.argument("evaluations", type=PATH, nargs=-1, required=True)
def main(run: str, teacher: str | None, student: str, stages: tuple[str], out: Path, evaluations: tuple[Path]) -> None:
    """Add the scores of EVALUATIONS ({name}.json) up: the share of the gap that each stage recovered."""
    with explained():
        by_name = {path.stem: path for path in evaluations}
        write_json(out, summarize(by_name, teacher, student, list(stages), run))


if __name__ == "__main__":
    main()
