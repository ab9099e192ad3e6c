"""Copy one batch's prompts out of the index's work folder."""

from pathlib import Path

import click

from distill.errors import DistillError, explained
from distill.files import read_json, replacing
from distill.kept import copy_from

PATH = click.Path(path_type=Path)


@click.command(help=__doc__)
@click.option("--index", type=PATH, required=True, help="prompts/index.json")
@click.option("--batch", required=True, help="four digits")
@click.option("--work", required=True, help="folder with the batches' rows, or one in a bucket")
@click.option("--out", type=PATH, required=True, help="JSONL file to write")
def main(index: Path, batch: str, work: str, out: Path) -> None:
    with explained():
        known = read_json(index)["batches"]
        if batch not in known:
            raise DistillError(
                f"batch {batch} is not in {index}, which ends at {max(known)}: raise prompts.num_batches"
            )
        with replacing(out) as tmp:
            if not copy_from(f"{work}/{batch}.jsonl", tmp):
                raise DistillError(f"{work}/{batch}.jsonl is gone: delete {index}, then run the same command again")


if __name__ == "__main__":
    main()
