"""The dataset card: README.md with the front matter that the Hub and `load_dataset` read."""

import json
from dataclasses import dataclass
from typing import Any

import yaml

from distill.config import Recipe
from distill.data.ledger import Account, Ledger
from distill.data.schema import CompletionsMetadata

FEATURES = [
    *({"name": name, "list": [{"name": part, "dtype": "string"} for part in ("role", "content")]}
      for name in ("prompt", "completion", "messages")),
    {"name": "prompt_id", "dtype": "string"},
    {"name": "sample", "dtype": "int32"},
]  # fmt: skip
# Each list is its own object: YAML writes a shared one as an alias, which `datasets` stumbles over.

TEXT = """\
# {run}: answers by {teacher}

{kept} answers that a teacher model wrote to {prompts} prompts, filtered, for training a smaller one.

| | |
|---|---|
| teacher | {teacher_row} |
| digest of its weights | `{digest}` |
| prompts | {source} |
| sampling | {generation} |
| license | {license} |

## Columns

`prompt` is the conversation up to the turn to answer, `completion` the teacher's answer to it, both lists of
messages with `role` and `content`; `messages` is the two together. `prompt_id` is a digest of `prompt`,
`sample` counts the answers to one prompt.

## What was kept

{ledger}

Every row that went in is in this table once, {generations} per kept prompt were asked for.
`ledger.json` has it batch by batch.

## How to make it again

Keep the recipe that lies beside the results of the run (`recipe.yaml`), then, in a checkout of distill:

```
snakemake --cores all --configfile recipe.yaml dataset
```

The same teacher, prompts, sampling and seed give the same answers on one kind of machine.
"""


@dataclass(frozen=True)
class CardFacts:
    """What the card tells that neither the prompt index nor the completions know."""

    run: str
    teacher: str
    revision: str | None
    license: str | None

    @classmethod
    def of(cls, recipe: Recipe) -> "CardFacts":
        """What `recipe` says of it."""
        teacher = recipe.models[recipe.teacher]
        return cls(recipe.run, teacher.source, teacher.revision, recipe.dataset.license)


def write_card(facts: CardFacts, source: dict[str, Any], completions: CompletionsMetadata, ledger: Ledger) -> str:
    """The text of README.md; `source` is the prompt index's. A license that nobody named is not guessed."""
    front: dict[str, Any] = {"license": facts.license} if facts.license else {}
    front |= {
        "task_categories": ["text-generation"],
        "tags": ["distillation", "synthetic"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}],
        "dataset_info": {
            "features": FEATURES,
            "splits": [{"name": "train", "num_examples": ledger.samples.kept}],
        },
    }
    generations = ledger.num_generations
    body = TEXT.format(
        run=facts.run,
        teacher=facts.teacher,
        kept=f"{ledger.samples.kept:,}",
        prompts=f"{ledger.prompts.kept:,}",
        teacher_row=f"`{facts.teacher}`" + (f" at revision `{facts.revision}`" if facts.revision else ""),
        digest=completions.teacher,
        source=", ".join(f"{key} `{value}`" for key, value in source.items() if value is not None),
        generation=f"`{json.dumps(completions.sampling, sort_keys=True)}`, seed {completions.seed}",
        license=facts.license or "unknown: see those of the teacher and of the prompts before using the answers",
        ledger=_table(ledger),
        generations="one answer" if generations == 1 else f"{generations} answers",
    )
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n\n{body}"


def _table(ledger: Ledger) -> str:
    lines = ["| | prompts | samples |", "|---|--:|--:|"]
    prompts, samples = ledger.prompts, ledger.samples
    lines.append(f"| went in | {prompts.total:,} | {samples.total:,} |")
    for reason in sorted({*prompts.dropped, *samples.dropped}):
        lines.append(f"| dropped: {reason} | {_count(prompts, reason)} | {_count(samples, reason)} |")
    lines.append(f"| kept | {prompts.kept:,} | {samples.kept:,} |")
    return "\n".join(lines)


def _count(account: Account, reason: str) -> str:
    return f"{account.dropped[reason]:,}" if account.dropped.get(reason) else ""
