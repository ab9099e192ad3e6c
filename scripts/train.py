"""Train one stage's student."""

from pathlib import Path

import click

from distill.config.results import Evaluation
from distill.config.stages import Stage
from distill.errors import explained
from distill.parallel.runtime import join, start
from distill.parent import leave_with_parent
from distill.training.loop import train

PATH = click.Path(path_type=Path)


@click.command()
@click.option("--init", type=PATH, required=True, help="params folder to start from")
@click.option("--teacher", type=PATH, help="params folder of the model that is asked for its logits")
@click.option("--told", type=PATH, multiple=True, help="file of completions with stored logits; give each")
@click.option("--told-by", type=PATH, help="params folder of the teacher whose logits these are")
@click.option("--stage", required=True, help="the stage's settings, JSON")
@click.option("--evaluation", help="the recipe's held-out prompts, JSON, for `held_out: evaluation`")
@click.option("--name", required=True, help="the stage's name")
@click.option("--template", type=click.Choice(["tokenizer", "none"]), required=True, help="chat template")
@click.option("--max-length", type=int, required=True, help="longer examples are dropped, in tokens")
@click.option("--folder", type=PATH, required=True, help="the student's folder")
@click.option("--kept", help="folder or bucket that keeps the steps of all stages too")
@click.argument("data", type=PATH, nargs=-1)
def main(
    init: Path,
    teacher: Path | None,
    told: tuple[Path, ...],
    told_by: Path | None,
    stage: str,
    evaluation: str | None,
    name: str,
    template: str,
    max_length: int,
    folder: Path,
    kept: str | None,
    data: tuple[Path, ...],
) -> None:
    """Train one stage's student on DATA, as it needs them: a dataset folder, prompt files with original answers."""
    with explained():
        leave_with_parent()
        start()
        join()
        shards = "data/train-*.parquet"
        files = [file for path in data for file in (sorted(path.glob(shards)) if path.is_dir() else [path])]
        settings = Stage.model_validate_json(stage)
        train(
            init, files, folder, settings, name, template=template, max_length=max_length, teacher=teacher, told=told,
            told_by=told_by, evaluation=Evaluation.model_validate_json(evaluation) if evaluation else None,
            elsewhere=f"{kept}/{name}/steps" if kept else None,
        )  # fmt: skip


if __name__ == "__main__":
    main()
