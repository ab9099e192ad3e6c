"""Write report.html, one self-contained page about a run."""

from pathlib import Path

import click

from distill.config.recipe import Recipe
from distill.errors import explained
from distill.evaluation.report import write_report

PATH = click.Path(path_type=Path)


@click.command(help=__doc__)
@click.option("--run", type=PATH, required=True, help="the run's folder")
@click.option("--recipe", required=True, help="the recipe, JSON")
@click.option("--out", type=PATH, required=True, help="HTML file to write")
def main(run: Path, recipe: str, out: Path) -> None:
    with explained():
        write_report(run, Recipe.model_validate_json(recipe), out)


if __name__ == "__main__":
    main()
