"""Publish a dataset or an exported student to one place."""

import json
from pathlib import Path

import click

from distill.config.recipe import Recipe
from distill.errors import explained
from distill.licenses import license_of
from distill.publishing.card import model_card
from distill.publishing.run import publish

PATH = click.Path(path_type=Path)


@click.command(help=__doc__)
@click.option("--folder", type=PATH, required=True, help="dataset folder, or a student's Hugging Face folder")
@click.option("--recipe", required=True, help="the recipe, JSON")
@click.option("--where", required=True, help="name of the place in the recipe's `publish.targets`")
@click.option("--sources", required=True, help="JSON: the folder that each model came in, for its license")
@click.option("--out", type=PATH, required=True, help="record to write")
def main(folder: Path, recipe: str, where: str, sources: str, out: Path) -> None:
    with explained():
        wanted = Recipe.model_validate_json(recipe)
        target = wanted.publish.targets[where]
        card = None
        if target.what != "dataset":
            theirs = {name: license_of(Path(source)) for name, source in json.loads(sources).items()}
            card = model_card(wanted, target.what, target.to.removeprefix("hf://"), target.license, theirs)
        click.echo(publish(folder, target, wanted.run, card, out))


if __name__ == "__main__":
    main()
