"""Import a Hugging Face folder as Orbax params with their model.json."""

from pathlib import Path

import click

from distill.checkpoints.convert import import_checkpoint
from distill.config.models import Model
from distill.errors import explained
from distill.files import read_json, write_json
from distill.text.template import read_template

PATH = click.Path(path_type=Path)


@click.command(help=__doc__)
@click.option("--source", type=PATH, required=True, help="Hugging Face folder")
@click.option("--tokenizer", type=PATH, required=True, help="folder of its tokenizer")
@click.option("--model", required=True, help="the model's settings, JSON")
@click.option("--out", type=PATH, required=True, help="params folder to make")
@click.option("--record", type=PATH, help="file that says so, and stays where the folder is deleted")
def main(source: Path, tokenizer: Path, model: str, out: Path, record: Path | None) -> None:
    with explained():
        wanted = Model.model_validate_json(model)
        snapshot = source / "source.json"  # a download's, with the commit that the revision stood for
        info = import_checkpoint(
            source,
            out,
            dtype=wanted.dtype,
            origin=wanted.source,
            revision=read_json(snapshot)["revision"] if snapshot.exists() else wanted.revision,
            tokenizer=tokenizer if tokenizer != source else None,
            chat_template=wanted.chat_template and read_template(wanted.chat_template, "chat_template"),
        )
        if record is not None:
            write_json(record, info.record())
        click.echo(f"{wanted.source}: {info.parameters:,} parameters, digest {info.digest[:12]}")


if __name__ == "__main__":
    main()
