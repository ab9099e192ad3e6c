"""Say what a run would do: models, prompts, samples, stages."""

from pathlib import Path

import click

from distill.config import Recipe
from distill.errors import explained
from distill.files import write_json
from distill.plan import plan, table

PATH = click.Path(path_type=Path)


@click.command(help=__doc__)
@click.option("--recipe", required=True, help="the recipe, JSON")
@click.option("--index", type=PATH, required=True, help="prompts/index.json, if there is one")
@click.option("--out", type=PATH, required=True, help="JSON file to write")
def main(recipe: str, index: Path, out: Path) -> None:
    with explained():
        counted = plan(Recipe.model_validate_json(recipe), index)
        write_json(out, counted)
        click.echo(table(counted))


if __name__ == "__main__":
    main()
