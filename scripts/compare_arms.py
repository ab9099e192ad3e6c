"""Set the arms of a recipe side by side: gains with their intervals, at equal tokens and at equal compute."""

from pathlib import Path

import click

from distill.config.recipe import Recipe
from distill.errors import explained
from distill.evaluation.evidence import write_evidence

PATH = click.Path(path_type=Path)


@click.command(help=__doc__)
@click.option("--run", type=PATH, required=True, help="the run's folder")
@click.option("--recipe", required=True, help="the recipe, JSON")
@click.option("--teacher", type=PATH, required=True, help="the teacher's params folder")
@click.option("--out", type=PATH, required=True, help="folder to make")
def main(run: Path, recipe: str, teacher: Path, out: Path) -> None:
    with explained():
        write_evidence(run, Recipe.model_validate_json(recipe), teacher, out)
        click.echo(f"{out}/README.md")


if __name__ == "__main__":
    main()
