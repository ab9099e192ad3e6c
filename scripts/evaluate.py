"""Score one model on the held-out prompts."""

from pathlib import Path

import click

from distill.config.results import Evaluation
from distill.errors import explained
from distill.evaluation.score import evaluate
from distill.parallel.runtime import start
from distill.parent import leave_with_parent

PATH = click.Path(path_type=Path)


@click.command(help=__doc__)
@click.option("--params", type=PATH, required=True, help="params folder")
@click.option("--teacher", type=PATH, help="params folder of the model that its distributions are compared with")
@click.option("--name", required=True, help="the model's or the stage's name")
@click.option("--evaluation", required=True, help="the evaluation's settings, JSON")
@click.option("--max-target-length", type=int, required=True, help="prompt and answer together, in tokens")
@click.option("--template", type=click.Choice(["tokenizer", "none"]), required=True, help="chat template")
@click.option("--out", type=PATH, required=True, help="JSON file to write")
def main(
    params: Path, teacher: Path | None, name: str, evaluation: str, max_target_length: int, template: str, out: Path
) -> None:
    with explained():
        leave_with_parent()
        start()
        settings = Evaluation.model_validate_json(evaluation)
        how = {"name": name, "template": template, "teacher": teacher}
        click.echo(evaluate(params, settings, max_target_length, out, **how))


if __name__ == "__main__":
    main()
