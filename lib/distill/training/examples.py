"""What a stage trains on: conversations as text, or the teacher's own tokens with its stored logits."""

from collections.abc import Sequence
from pathlib import Path

from distill.checkpoints.info import read_info
from distill.config.results import Evaluation
from distill.config.stages import Stage
from distill.config.training import Part
from distill.data.aligned import Aligner
from distill.data.conversations import training_conversations
from distill.data.masking import Examples, joined, training_examples
from distill.data.stored import Wanted, kept_in, stored_examples
from distill.text.chat import Template
from distill.text.compatibility import compare, must_be_open
from distill.text.sources import read_conversations
from distill.text.spelling import shared_classes
from distill.text.tokenizer import load_tokenizer


def text_examples(init: Path, data: Sequence[Path], stage: Stage, template: Template, max_length: int) -> Examples:
    """The stage's conversations in the student's own tokens."""
    tokenizer, sources = load_tokenizer(init / "tokenizer"), []
    for part in stage.data:
        found = training_conversations(data, part)
        how = {"loss_on": stage.loss_on, "thoughts": stage.thoughts, "overlong": stage.overlong, "name": part.source}
        sources.append(training_examples(found, tokenizer, template, max_length, **how))
    return joined(sources, [part.weight for part in stage.data])


def aligned_examples(
    init: Path, data: Sequence[Path], teacher: Path, stage: Stage, template: Template, max_length: int
) -> Examples:
    """The stage's conversations in the student's own tokens and in the teacher's."""
    ours, theirs = (load_tokenizer(folder / "tokenizer") for folder in (init, teacher))
    context = read_info(teacher).architecture.max_positions
    aligner = Aligner(theirs, ours, shared_classes(theirs, ours), template)
    sources = [
        aligner.examples(
            training_conversations(data, part), max_length, context, overlong=stage.overlong, name=part.source
        )
        for part in stage.data
    ]
    return joined(sources, [part.weight for part in stage.data])


def evaluation_examples(init: Path, evaluation: Evaluation, template: Template) -> Examples:
    """Held-out prompts with their right answers, as far as the student's context holds them."""
    info, tokenizer = read_info(init), load_tokenizer(init / "tokenizer")
    rows = [row for row in read_conversations(evaluation, evaluation.limit) if row.reference is not None]
    found = ([*row.messages, {"role": "assistant", "content": row.reference}] for row in rows)
    return training_examples(found, tokenizer, template, info.architecture.max_positions, name=evaluation.source)


def logits_examples(
    init: Path, data: Sequence[Path], told: Sequence[Path], told_by: Path, stage: Stage, name: str, folder: Path,
    max_length: int,
) -> Examples:  # fmt: skip
    """Completions with logits in the files `told` by the teacher `told_by`, as far as the dataset has them.

    `folder` gets what is mapped into memory while the stage trains.
    """
    must_be_open({name: stage.objective}, compare(told_by, init))
    teacher = read_info(told_by)
    sources = [
        Wanted(
            files=[file for file in told if has_logits_of(file, part)],
            kept=kept_in([file for file in data if file.suffix == ".parquet"]) if part.source == "generated" else None,
            weight=part.weight,
            samples=part.samples,
            corrupt=part.corrupt,
        )
        for part in stage.data
    ]
    return stored_examples(
        sources, stage.kind, stage.k, folder, max_length, cut=stage.overlong == "cut", teacher=teacher.digest,
        tokenizer_hash=teacher.tokenizer_hash,
    )  # fmt: skip


def has_logits_of(file: Path, part: Part) -> bool:
    """Whether a file has a source's logits, by its name: 0007, original-0007, published-{id8}."""
    if part.published:
        return file.stem == f"published-{part.id8}"
    return file.stem.startswith("original-") if part.source == "original" else file.stem.isdigit()
