"""Let the teacher read completions that are there already, and store its logits with their tokens."""

from pathlib import Path

import click

from distill.config.training import Part
from distill.errors import explained
from distill.generation.scoring import score_logits
from distill.parallel.runtime import start
from distill.parent import leave_with_parent

PATH = click.Path(path_type=Path)


@click.command(help=__doc__)
@click.option("--teacher", type=PATH, required=True, help="params folder")
@click.option("--completions", type=PATH, help="a batch's Parquet file, or")
@click.option("--prompts", type=PATH, help="a batch's JSONL file, for the answers that its prompts came with, or")
@click.option("--part", help="a source of a stage's data, JSON")
@click.option("--top", type=click.IntRange(0), default=0, help="likeliest ids to store of a token")
@click.option("--sampled", type=click.IntRange(0), default=0, help="draws to store of a token")
@click.option("--seed", type=int, default=0, help="of the draws")
@click.option("--max-target-length", type=int, required=True, help="that completions were generated with, in tokens")
@click.option("--template", type=click.Choice(["tokenizer", "none"]), required=True, help="chat template")
@click.option("--out", type=PATH, required=True, help="Parquet file to write")
def main(
    teacher: Path,
    completions: Path | None,
    prompts: Path | None,
    part: str | None,
    top: int,
    sampled: int,
    seed: int,
    max_target_length: int,
    template: str,
    out: Path,
) -> None:
    with explained():
        leave_with_parent()
        start()
        text = {"completions": completions, "prompts": prompts, "part": part and Part.model_validate_json(part)}
        widths = {"top": top, "sampled": sampled}
        click.echo(score_logits(teacher, out, widths, seed, template, max_target_length, **text))


if __name__ == "__main__":
    main()
