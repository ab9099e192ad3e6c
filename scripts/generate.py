"""Let the teacher answer one batch of prompts. A server does; the first batch that asks starts it."""

import gc
import os
import sys

if __name__ == "__main__":
    gc.disable()  # to look for garbage among what is imported takes a tenth of the start
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # to look for these a twentieth, and there are none

from pathlib import Path

import click

from distill.config.generation import Generation
from distill.errors import explained
from distill.generation.run import generate_batch
from distill.parent import leave_with_parent

PATH = click.Path(path_type=Path)


class NoPandas:
    """An import hook: to see that a list is no series, pyarrow would import pandas, half a second of each job."""

    @staticmethod
    def find_spec(name: str, *_: object) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name)


@click.command(help=__doc__)
@click.option("--teacher", type=PATH, required=True, help="params folder")
@click.option("--prompts", type=PATH, required=True, help="a batch's JSONL file")
@click.option("--generation", required=True, help="the generation's settings, JSON")
@click.option("--template", default="tokenizer", help="chat template of prompts that follow others")
@click.option("--work", type=PATH, required=True, help="folder of the journals that batches share")
@click.option("--kept", help="folder or bucket that keeps the journals too")
@click.option("--idle-seconds", type=float, default=60, help="the server leaves after so long unasked")
@click.option("--out", type=PATH, required=True, help="Parquet file to write")
def main(
    teacher: Path,
    prompts: Path,
    generation: str,
    template: str,
    work: Path,
    kept: str | None,
    idle_seconds: float,
    out: Path,
) -> None:
    gc.enable()
    with explained():
        leave_with_parent()
        settings = Generation.model_validate_json(generation)
        how = {"work": work, "idle_seconds": idle_seconds, "template": template, "elsewhere": kept}
        click.echo(generate_batch(teacher, prompts, out, settings, **how))


if __name__ == "__main__":
    sys.meta_path.insert(0, NoPandas)
    main()
