"""Filter the teacher's completions and write the training set."""

from pathlib import Path

import click

from distill.config.dataset import Dataset
from distill.config.models import Model
from distill.data.assemble import assemble, digest_of
from distill.data.card import CardFacts
from distill.errors import explained
from distill.files import read_json
from distill.licenses import license_of

PATH = click.Path(path_type=Path)


@click.command(help=__doc__)
@click.option("--completions", type=PATH, required=True, help="folder of the batches' files")
@click.option("--index", type=PATH, required=True, help="prompts/index.json")
@click.option("--dataset", required=True, help="the dataset's settings, JSON")
@click.option("--num-generations", type=int, required=True, help="samples that a prompt was asked for")
@click.option("--run", required=True, help="the run's name, for the card")
@click.option("--teacher", required=True, help="the teacher's settings, JSON, for the card")
@click.option("--teacher-params", type=PATH, required=True, help="params folder; other teachers' files are refused")
@click.option("--teacher-source", type=PATH, required=True, help="the folder it was imported from, for its license")
@click.option("--work", type=PATH, help="folder of what a judge said")
@click.option("--out", type=PATH, required=True, help="dataset folder to make")
def main(
    completions: Path,
    index: Path,
    dataset: str,
    num_generations: int,
    run: str,
    teacher: str,
    teacher_params: Path,
    teacher_source: Path,
    work: Path | None,
    out: Path,
) -> None:
    with explained():
        wanted, model = Dataset.model_validate_json(dataset), Model.model_validate_json(teacher)
        facts = CardFacts(run, model.source, model.revision, wanted.license, license_of(teacher_source))
        known = read_json(index)
        files = [completions / f"{batch}.parquet" for batch in known["batches"]]
        ledger = assemble(files, known, wanted, num_generations, facts, out, digest_of(teacher_params), work)
        click.echo(ledger.summary())


if __name__ == "__main__":
    main()
