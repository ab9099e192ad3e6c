"""Where a training process of model A spends its time outside its steps.

    .venv/bin/python benchmarks/outside_steps.py

A process trains from 2,000 published examples, twice: the first fills the cache of compiled programs, the second is
told. Steps are few and small, for they are not what is asked: compiling and loading are those of any run. `--model B`
takes the larger one.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import numpy as np
from machine import footer
from side_by_side import SHAPES, make_model

WORKER = Path(__file__).with_name("outside_steps_worker.py")


@click.command(help=__doc__)
@click.option("--model", type=click.Choice(list(SHAPES)), default="A", show_default=True)
def main(model: str) -> None:
    folder = Path(tempfile.mkdtemp(prefix="outside-steps-"))
    try:
        make_model(folder, SHAPES[model])
        words = np.random.default_rng(0).integers(3, 32000, (2000, 80)).astype(str)
        rows = [{"prompt": " ".join(row[:20]), "completion": " ".join(row[20:])} for row in words]
        (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        settings = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}
        for _ in range(2):
            done = subprocess.run([sys.executable, WORKER, folder], env=settings, stdout=subprocess.PIPE, check=True)
            found = json.loads(done.stdout)
        click.echo("| outside the steps | seconds | of CPU |\n|---|--:|--:|")
        for name, (wall, cpu) in found["parts"].items():
            click.echo(f"| {name} | {wall:.1f} | {cpu:.1f} |")
        wall, cpu = (sum(part[i] for part in found["parts"].values()) for i in range(2))
        click.echo(f"| together | {wall:.1f} | {cpu:.1f} |\n\n{footer(found['versions'])}")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
