"""Copy one batch's prompts out of the index's work folder."""

import shutil
from pathlib import Path

import click

from distill.errors import DistillError, explained
from distill.files import read_json, replacing

PATH = click.Path(path_type=Path)


@click.command(help=__doc__)
@click.option("--index", type=PATH, required=True, help="prompts/index.json")
@click.option("--batch", required=True, help="four digits")
@click.option("--work", type=PATH, required=True, help="folder with the batches' rows")
@click.option("--out", type=PATH, required=True, help="JSONL file to write")
def main(index: Path, batch: str, work: Path, out: Path) -> None:
    with explained():
        known = read_json(index)["batches"]
        if batch not in known:
            raise DistillError(
                f"batch {batch} is not in {index}, which ends at {max(known)}: raise prompts.num_batches"
            )
        source = work / f"{batch}.jsonl"
        if not source.exists():
            raise DistillError(f"{source} is gone: delete {index}, then run the same command again")
        with replacing(out) as tmp:
            shutil.copyfile(source, tmp)


if __name__ == "__main__":
    main()
