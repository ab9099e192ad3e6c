"""The dataset card: README.md with the front matter that the Hub and `load_dataset` read."""

import json
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any

import yaml

from distill.data.ledger import Account, Ledger
from distill.data.schema import OWN, CompletionsMetadata

DTYPES = {
    "prompt_id": "string", "sample": "int32", "batch": "string", "finish_reason": "string", "reference": "string",
    "mean_logprob": "float32", "completion_tokens": "int32", "teacher": "string", "seed": "int64",
    "judge_score": "float32",
}  # fmt: skip
JUDGED = "`judge_score` is what a judge gave the answer, null where it was not asked.\n"

TEXT = """\
# {title}

{opening}

| | |
|---|---|
{origin}
| license | {license} |

## Columns

`prompt` is the conversation up to the turn to answer, `completion` {answer}, both lists of
messages with `role` and `content`; `messages` is the two together. `prompt_id` is a digest of the conversation
as its source had it, `sample` {sample}.
{provenance}
## What was kept

{ledger}

Every row that went in is in this table once; {asked}.
`ledger.json` has it batch by batch.

## How to make it again

Keep the recipe that lies beside the results of the run (`recipe.yaml`), then, in a checkout of distill {version}:

```
snakemake --cores all --configfile recipe.yaml dataset
```

{again}
"""


@dataclass(frozen=True)
class Words:
    """What a card says otherwise, by who wrote the answers."""

    title: str
    opening: str
    answer: str
    sample: str
    asked: str
    provenance: str
    again: str


TEACHER = Words(
    title="{run}: answers by {teacher}",
    opening="{kept} answers that a teacher model wrote to {prompts} prompts, filtered, for training a smaller one.",
    answer="the teacher's answer to it",
    sample="counts the answers to one prompt",
    asked="answers asked for per kept prompt: {generations}",
    provenance="""
The other columns say where a row comes from: the file of its batch, how the answer ended, the right answer where
there is one, the mean log-probability of its tokens and their number, the teacher's digest, the seed.
""",
    again="The same teacher, prompts, sampling and seed give the same answers on one kind of machine.",
)
ELSEWHERE = replace(
    TEACHER,
    provenance=TEACHER.provenance.replace(
        "their number, the teacher's digest", "their number where the server told them, the model's name there"
    ),
    again="Another run's answers are other ones: the server that gave these is not ours.",
)
CAME_WITH_PROMPTS = Words(
    title="{run}: answers that came with their prompts",
    opening="{kept} answers to {prompts} prompts, both from the same source, filtered, for training a model.",
    answer="the answer that it came with",
    sample="is 0",
    asked="a kept prompt has the one answer that it came with, or none and is counted as failed",
    provenance="""
The other columns: the file of a row's batch, and the right answer where there is one. No teacher was asked, so that
`finish_reason`, `teacher` and `seed` are the same in all rows, and what its tokens would tell is null.
""",
    again="The same prompts and filters give the same rows.",
)


@dataclass(frozen=True)
class CardFacts:
    """What the card tells that neither the prompt index nor the completions know."""

    run: str
    teacher: str
    revision: str | None
    license: str | None
    teacher_license: str | None = None


def write_card(
    facts: CardFacts,
    index: dict[str, Any],
    completions: CompletionsMetadata,
    ledger: Ledger,
    splits: dict[str, tuple[int, int]],
    columns: list[str],
    chosen_by: dict[str, Any],
) -> str:
    """The text of README.md; `index` is the prompts', `chosen_by` are the filters of answers.

    splits: rows and bytes in memory of each; `datasets` takes no notice of those that lack one of the two.
    A license that nobody named is not guessed.
    """
    own, source = completions.foreign == OWN, index["source"]
    front: dict[str, Any] = {"license": facts.license} if facts.license else {}
    files = [{"split": name, "path": f"data/{name}-*.parquet"} for name in splits]
    front |= {
        "task_categories": ["text-generation"],
        **({} if own else {"tags": ["distillation", "synthetic"]}),
        "configs": [{"config_name": "default", "data_files": files}],
        "dataset_info": {
            "features": [_feature(name) for name in columns],
            "splits": [
                {"name": name, "num_bytes": size, "num_examples": rows} for name, (rows, size) in splits.items()
            ],
        },
    }
    teacher = f"`{facts.teacher}`" + (f" at revision `{facts.revision}`" if facts.revision else "")
    sampling = f"`{json.dumps(completions.sampling, sort_keys=True)}`, seed {completions.seed}"
    words, rows = TEACHER, {"teacher": teacher, "digest of its weights": f"`{completions.teacher}`"}
    if own:
        words, rows, sampling = CAME_WITH_PROMPTS, {}, "none: the answers came with the prompts"
    elif completions.foreign is not None:
        words = ELSEWHERE
        rows |= {"answered by": f"`{completions.foreign}`, a server that is not ours: not reproducible"}
    rows |= {"prompts": _origin(source)}
    if index.get("chosen"):
        rows |= {"prompts' settings": _settings(index["chosen"])}
    rows |= {"sampling": sampling}
    if chosen_by:
        rows |= {"filters": _settings(chosen_by)}
    told = words.provenance if "batch" in columns else ""
    words = replace(words, provenance=told + (JUDGED if "judge_score" in columns else ""))
    known = {"run": facts.run, "teacher": facts.teacher, "generations": ledger.num_generations}
    known |= {"kept": f"{ledger.samples.kept:,}", "prompts": f"{ledger.prompts.kept:,}"}
    body = TEXT.format(
        **{name: text.format(**known) for name, text in asdict(words).items()},
        origin="\n".join(f"| {name} | {value} |" for name, value in rows.items()),
        license=_license(facts, source, own),
        version=version("distill"),
        ledger=_table(ledger),
    )
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n\n{body}"


def _license(facts: CardFacts, source: dict[str, Any], own: bool) -> str:
    """The result's, and what the cards of that it is made of say."""
    named = [origin.get("license") for origin in source.get("mix", [source])]
    prompts = ", ".join(dict.fromkeys(filter(None, named))) or None
    if facts.license is None:
        return _unknown(facts.teacher_license, prompts, own)
    teacher = "" if own else f"the teacher's own card says {facts.teacher_license or 'nothing'}, "
    return f"{facts.license} ({teacher}that of the prompts {prompts or 'nothing'})"


def _unknown(teacher: str | None, prompts: str | None, own: bool) -> str:
    if own:
        return f"unknown: the card of the prompts says {prompts or 'nothing'}; see it before using the answers"
    if not teacher and not prompts:
        return "unknown: see those of the teacher and of the prompts before using the answers"
    return (
        f"unknown: the teacher's own card says {teacher or 'nothing'}, that of the prompts {prompts or 'nothing'}; "
        "see both before using the answers"
    )


def _settings(values: dict[str, Any]) -> str:
    return f"`{json.dumps(values, sort_keys=True, ensure_ascii=False)}`".replace("|", "\\|")


def _origin(source: dict[str, Any]) -> str:
    told = {key: value for key, value in source.items() if value is not None and key not in ("mix", "license")}
    parts = ", ".join(f"{key} `{value}`" for key, value in told.items())
    return "; ".join([parts, *map(_origin, source.get("mix", []))])


def _feature(name: str) -> dict[str, Any]:
    """Each list is its own object: YAML writes a shared one as an alias, which `datasets` stumbles over."""
    if name in DTYPES:
        return {"name": name, "dtype": DTYPES[name]}
    return {"name": name, "list": [{"name": part, "dtype": "string"} for part in ("role", "content")]}


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
