"""Read the prompt dataset once: tokenize, drop, cut into batches, and hash each batch's rows."""

from pathlib import Path

import click

from distill.config.prompts import Prompts
from distill.errors import explained
from distill.files import read_json, write_json
from distill.kept import filled
from distill.text.prompts import index_prompts
from distill.text.tokenizer import load_tokenizer

PATH = click.Path(path_type=Path)


@click.command(help=__doc__)
@click.option("--teacher", type=PATH, required=True, help="params folder")
@click.option("--prompts", required=True, help="the prompts' settings, JSON")
@click.option("--max-prefill-length", type=int, required=True, help="longer prompts are dropped, in tokens")
@click.option("--work", required=True, help="folder for the batches' rows, or one in a bucket")
@click.option("--out", type=PATH, required=True, help="index to write")
def main(teacher: Path, prompts: str, max_prefill_length: int, work: str, out: Path) -> None:
    with explained():
        wanted = Prompts.model_validate_json(prompts)
        tokenizer = load_tokenizer(teacher / "tokenizer")
        context = read_json(teacher / "model.json")["architecture"]["max_positions"]
        with filled(work) as folder:
            index = index_prompts(wanted, tokenizer, max_prefill_length, context, folder)
        write_json(out, index)
        kept = sum(batch["kept"] for batch in index["batches"].values())
        click.echo(f"{wanted.name}: {kept:,} prompts in {len(index['batches'])} batches")


if __name__ == "__main__":
    main()
