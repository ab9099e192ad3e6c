"""Score one model on the held-out prompts."""

from pathlib import Path

import click

from distill.config import Evaluation, Generation
from distill.errors import explained
from distill.evaluation.score import evaluate
from distill.parallel.runtime import start
from distill.parent import leave_with_parent

PATH = click.Path(path_type=Path)


@click.command(help=__doc__)
@click.option("--params", type=PATH, required=True, help="params folder")
@click.option("--name", required=True, help="the model's or the stage's name")
@click.option("--evaluation", required=True, help="the evaluation's settings, JSON")
@click.option("--generation", required=True, help="the generation's settings, JSON")
@click.option("--template", type=click.Choice(["tokenizer", "none"]), required=True, help="chat template")
@click.option("--out", type=PATH, required=True, help="JSON file to write")
def main(params: Path, name: str, evaluation: str, generation: str, template: str, out: Path) -> None:
    with explained():
        leave_with_parent()
        start()
        settings = Evaluation.model_validate_json(evaluation)
        lengths = Generation.model_validate_json(generation)
        click.echo(evaluate(params, settings, lengths, out, name=name, template=template))


if __name__ == "__main__":
    main()
