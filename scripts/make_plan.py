"""Say what a run would do: prompts, tokens, disk, memory of a device, hours, and what would not fit."""

import json
from pathlib import Path

import click

from distill.config.recipe import Recipe
from distill.errors import explained
from distill.files import replacing, write_json
from distill.parallel.runtime import simulate, start
from distill.planning.plan import plan
from distill.planning.table import table

PATH = click.Path(path_type=Path)


@click.command(help=__doc__)
@click.option("--recipe", required=True, help="the recipe, JSON")
@click.option("--configs", required=True, help="{model: config.json or model.json, or null}, JSON")
@click.option("--index", type=PATH, required=True, help="prompts/index.json, if there is one")
@click.option("--out", type=PATH, required=True, help="JSON file to write")
@click.option("--table", "readable", type=PATH, required=True, help="text file to write")
def main(recipe: str, configs: str, index: Path, out: Path, readable: Path) -> None:
    with explained():
        wanted = Recipe.model_validate_json(recipe)
        simulate(wanted.plan.devices)
        start()
        files = {name: file and Path(file) for name, file in json.loads(configs).items()}
        counted = plan(wanted, index, files)
        with replacing(readable) as tmp:
            tmp.write_text(table(counted) + "\n", encoding="utf-8")
        write_json(out, counted)


if __name__ == "__main__":
    main()
