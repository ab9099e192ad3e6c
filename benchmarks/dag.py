"""What Snakemake itself takes of a run's time, by the number of batches.

    .venv/bin/python benchmarks/dag.py                    # 200, 2,000 and 20,000 batches
    .venv/bin/python benchmarks/dag.py --batches 2000     # one of them
    .venv/bin/python benchmarks/dag.py --profile          # and where a no-op of 2,000 spends it

The models are imported and the prompts indexed for real, a prompt a batch; all files after them are empty ones.

dry-run: `-n` where no batch has been made yet, all of them listed. touch: `--touch`, which takes them as they are.
no-op: the plain command, which finds everything there. one more: `-n` with one more batch in the dataset.
overhead: 200 jobs that copy a batch's prompts, one at a time, without what such a job takes by itself; three rounds.
And what Snakemake's own process takes a job of the first 100 where 200 and 2,000 wait: choosing the next is part of it.

Seconds are of the clock and, behind them, of the processor, which other work on the machine changes less.
"""

import json
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

import click
import psutil
import yaml
from machine import footer, installed

ROOT = Path(__file__).resolve().parent.parent
RUN = "results/dag"
EMPTY = ("students/sft/final.json", "students/sft/metrics.jsonl", "compatibility.json", "summary.json", "report.html",
         *(f"evaluation/{name}.json" for name in ("teacher", "student", "sft")))  # fmt: skip
FOLDERS = ("dataset", "students/sft/params", "export/sft")
SNAKEMAKE = (sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "1")
ALL = ("--scheduler-subsample", "1000000")
SCHEDULERS = {"greedy, of 200": (), "greedy, of all": ALL, "ilp, of all": ("--scheduler", "ilp", *ALL)}


def make_project(folder: Path, batches: int) -> None:
    """A recipe of so many batches, its models and its index."""
    rows = [{"messages": [{"role": "user", "content": f"spell {i} backwards"}]} for i in range(batches)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "run": "dag",
        "models": {name: {"source": str(ROOT / "demo" / name)} for name in ("teacher", "student")},
        "prompts": {"source": "prompts.jsonl", "batch_size": 1, "overlong": "drop"},
        "stages": {"sft": {"init": "student", "steps": 1}},
        "evaluation": {"source": str(ROOT / "demo/heldout.jsonl"), "reference": "reference"},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    snakemake(folder, f"{RUN}/prompts/index.json", f"{RUN}/compatibility.json")


def fill(folder: Path) -> None:
    """Every file that a run would leave, with nothing in it."""
    run = folder / RUN
    for batch in json.loads((run / "prompts/index.json").read_text())["batches"]:
        for file in (run / f"prompts/{batch}.jsonl", run / f"completions/{batch}.parquet"):
            file.parent.mkdir(exist_ok=True)
            file.touch()
    for name in FOLDERS:
        (run / name).mkdir(parents=True)
    for name in EMPTY:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text('{"models": {}}')


class Seconds(NamedTuple):
    clock: float
    used: float

    def __str__(self) -> str:
        return f"{self.clock:.1f} s ({self.used:.1f} s)"


def used() -> float:
    """Seconds of the processor that children took."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return children.ru_utime + children.ru_stime


def snakemake(folder: Path, *arguments: str) -> Seconds:
    """Run it on one core, and say how long that took."""
    start, before = time.perf_counter(), used()
    done = subprocess.run(
        [*SNAKEMAKE, *arguments, "--configfile", "recipe.yaml"], cwd=folder, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"snakemake {' '.join(arguments)} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return Seconds(time.perf_counter() - start, used() - before)


def scale(folder: Path, batches: int) -> str:
    """A row of the table."""
    make_project(folder, batches)
    dry = snakemake(folder, "-n", "--quiet")
    fill(folder)
    touch = snakemake(folder, "--touch")
    again = min(snakemake(folder) for _ in range(2))
    with (folder / "prompts.jsonl").open("a") as file:
        file.write(json.dumps({"messages": [{"role": "user", "content": "one more"}]}) + "\n")
    snakemake(folder, f"{RUN}/prompts/index.json")
    more = snakemake(folder, "-n", "--quiet")
    return f"| {batches:,} | {dry} | {touch} | {again} | {more} |"


def overhead(folder: Path, batches: int, rounds: int) -> list[str]:
    """Rows of the other table: what a job costs beside its own time, by scheduler, as the median of some rounds."""
    make_project(folder, batches)
    run = folder / RUN
    alone = [sys.executable, str(ROOT / "scripts/prepare_prompts.py"), "--index", str(run / "prompts/index.json"),
             "--batch", "0000", "--work", str(run / "work/prompts"), "--out", str(folder / "out.jsonl")]  # fmt: skip
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in SCHEDULERS}
    for _ in range(rounds):
        start, before = time.perf_counter(), used()
        for _ in range(10):
            subprocess.run(alone, check=True, capture_output=True)
        own = Seconds((time.perf_counter() - start) / 10, (used() - before) / 10)
        for name, arguments in SCHEDULERS.items():
            for file in (run / "prompts").glob("*.jsonl"):
                file.unlink()
            nothing = snakemake(folder, "-n", "prompts", "--quiet")
            all_ = snakemake(folder, "prompts", *arguments)
            over = [(a - b) / batches - c for a, b, c in zip(all_, nothing, own, strict=True)]
            found[name].append((*over, *own))
    rows = []
    for name, several in found.items():
        clock, cpu, *own = (f"{1000 * median(column):.0f} ms" for column in zip(*several, strict=True))
        rows.append(f"| {name} | {clock} ({cpu}) | {own[0]} ({own[1]}) |")
    return rows


def choosing(folder: Path, ready: int, jobs: int) -> list[str]:
    """What Snakemake's own process takes a job while so many wait, by scheduler; it is ended after some."""
    make_project(folder, ready)
    made, rows = folder / RUN / "prompts", []
    for name, arguments in SCHEDULERS.items():
        for file in made.glob("*.jsonl"):
            file.unlink()
        process = psutil.Popen([*SNAKEMAKE, "prompts", *arguments, "--configfile", "recipe.yaml"], cwd=folder,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        marks = []
        for wanted in (1, jobs + 1):
            while (there := len(list(made.glob("*.jsonl")))) < wanted:
                if process.poll() is not None:
                    raise SystemExit(f"snakemake ended after {there} jobs")
                time.sleep(0.05)
            times = process.cpu_times()
            marks.append((there, times.user + times.system))
        process.send_signal(signal.SIGINT)
        process.wait()
        (first, before), (last, after) = marks
        rows.append(f"| {name} | {ready:,} | {1000 * (after - before) / (last - first):.0f} ms |")
    return rows


@click.command(help=__doc__)
@click.option("--batches", type=int, multiple=True, default=(200, 2_000, 20_000), show_default=True)
@click.option("--profile", is_flag=True, help="print where the no-op's time goes")
@click.option("--jobs/--no-jobs", default=True, help="also the overhead of a job at 200")
def main(batches: tuple[int, ...], profile: bool, jobs: bool) -> None:
    click.echo(footer(installed("snakemake")))
    click.echo("\n| batches | dry-run | touch | no-op | one more |\n|--:|--:|--:|--:|--:|")
    for number in batches:
        with tempfile.TemporaryDirectory() as folder:
            click.echo(scale(Path(folder), number))
            if profile:
                command = ["-m", "cProfile", "-s", "cumulative", "-m", "snakemake", "--snakefile", ROOT / "Snakefile"]
                more = ["--cores", "1", "--configfile", "recipe.yaml"]
                told = subprocess.run([sys.executable, *command, *more], cwd=folder, capture_output=True, text=True)
                click.echo("\n".join(told.stdout.splitlines()[:70]))
    if jobs:
        click.echo("\n| scheduler | a job's overhead | its own time |\n|---|--:|--:|")
        with tempfile.TemporaryDirectory() as folder:
            click.echo("\n".join(overhead(Path(folder), 200, 3)))
        click.echo("\n| scheduler | jobs that wait | of the processor, a job |\n|---|--:|--:|")
        for ready in (200, 2_000):
            with tempfile.TemporaryDirectory() as folder:
                click.echo("\n".join(choosing(Path(folder), ready, 100)))


if __name__ == "__main__":
    main()
