"""Make a student of a teacher's own weights: some of its layers, heads and neurons."""

from pathlib import Path

import click

from distill.checkpoints.derive import derive_student
from distill.config.models import Model
from distill.config.prompts import Prompts
from distill.errors import explained
from distill.files import write_json
from distill.parallel.runtime import start
from distill.text.chat import prompts_tokens
from distill.text.sources import read_conversations
from distill.text.tokenizer import load_tokenizer

PATH = click.Path(path_type=Path)


@click.command(help=__doc__)
@click.option("--parent", type=PATH, required=True, help="params folder of the teacher")
@click.option("--model", required=True, help="the student's settings, JSON")
@click.option("--prompts", help="settings of the prompts that heads and neurons are judged on, JSON")
@click.option("--out", type=PATH, required=True, help="params folder to make")
@click.option("--record", type=PATH, help="file that says so, and stays where the folder is deleted")
def main(parent: Path, model: str, prompts: str | None, out: Path, record: Path | None) -> None:
    with explained():
        start()
        wanted, ids = Model.model_validate_json(model), []
        if prompts:
            settings, tokenizer = Prompts.model_validate_json(prompts), load_tokenizer(parent / "tokenizer")
            found = [row for source in settings.sources for row in read_conversations(source, wanted.derive.prompts)]
            asked = [row.messages for row in found][: wanted.derive.prompts]
            ids = prompts_tokens(tokenizer, asked, settings.chat_template)
        how = {"dtype": wanted.dtype, "origin": wanted.source, "prompts": ids}
        info = derive_student(parent, out, wanted.derive, **how)
        if record is not None:
            write_json(record, info.record())
        click.echo(f"{wanted.source}: {info.parameters:,} parameters, digest {info.digest[:12]}")


if __name__ == "__main__":
    main()
