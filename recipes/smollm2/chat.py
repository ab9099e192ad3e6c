"""Chat prompts from a wheel of the package index: how chat.jsonl and chat-heldout.jsonl beside this were made.

    .venv/bin/python recipes/smollm2/chat.py

The wheel chatterbot-corpus 1.3.3 (BSD-3-Clause, Gunther Cox and contributors) has short English conversations. The
first turn of each is a prompt, the second one what its author answered, by which models are judged on those held out.
"""

import subprocess
import sys
import tempfile
from hashlib import blake2b
from pathlib import Path

import click
import yaml

from distill.errors import DistillError, explained
from distill.files import write_jsonl

HERE = Path(__file__).resolve().parent
SHORTEST, LONGEST = 12, 140  # characters of a prompt
HELD_OUT = 1 / 12  # of the prompts, by hash


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), default=HERE, show_default=True, help="folder to write into")
def main(out: Path) -> None:
    with explained(), tempfile.TemporaryDirectory() as wheels:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
                   "--require-hashes", "--target", wheels, "-r", HERE / "chat-requirements.txt"]  # fmt: skip
        if subprocess.run(command).returncode:
            raise DistillError("the wheel cannot be had from the package index: see what pip says above")
        rows: dict[str, dict] = {}
        for file in sorted(Path(wheels).glob("chatterbot_corpus/data/english/*.yml")):
            for prompt, answer, *_ in yaml.safe_load(file.read_text(encoding="utf-8"))["conversations"]:
                asked = " ".join(str(prompt).split())
                if SHORTEST <= len(asked) <= LONGEST:
                    messages = [{"role": "user", "content": asked}]
                    rows.setdefault(asked.lower(), {"messages": messages, "reference": " ".join(str(answer).split())})
        apart = {asked: _drawn(asked) < HELD_OUT for asked in rows}
        for name, wanted in (("chat.jsonl", False), ("chat-heldout.jsonl", True)):
            chosen = [row for asked, row in rows.items() if apart[asked] == wanted]
            write_jsonl(out / name, chosen)
            click.echo(f"{out / name}: {len(chosen):,} prompts")


def _drawn(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64


if __name__ == "__main__":
    main()
