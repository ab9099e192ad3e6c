"""What the report shows, read from a run's folder: plain values, each beside the name of its file."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from distill.cleaning import folder_bytes
from distill.config.recipe import Recipe
from distill.files import read_json, read_jsonl

LONGEST_TEXT = 700  # characters of a sample shown; the file beside it has the rest
LONGEST_CELL = 120  # characters that a table's cell holds well; longer texts are set side by side below the prompt
MOST_MISTAKES = 6
WHY_DROPPED = {
    "prompts": {
        "overlong": "longer than generation.max_prefill_length",
        "duplicate": "the same messages as an earlier prompt",
        "similar": "nearly the words of an earlier prompt",
        "contamination": "in a set of prompts.exclude",
        "malformed": "no conversation",
        "not_sampled": "not in the share that prompts.sample takes",
    },
    "samples": {
        "length": "cut at generation.max_target_length before the teacher ended",
        "empty": "no text",
        "duplicate": "the same answer to the same prompt",
        "wrong": "refused by the verifier",
        "code_failed": "its code did not pass",
        "code_timeout": "its code took too long",
        "no_reference": "nothing to verify it by",
        "repetition": "turns in a circle",
        "refusal": "declines to answer",
        "unlikely": "under dataset.quality.min_logprob",
        "not_best": "not among the best of its prompt",
        "failed": "no answer came",
    },
}


@dataclass(frozen=True)
class Run:
    """A run's folder and its recipe."""

    folder: Path
    recipe: Recipe

    def file(self, *parts: str) -> Path:
        return self.folder.joinpath(*parts)

    def label(self, *parts: str) -> str:
        """The file's name as a reader may look for it: of an absolute path, or a copy's, the last folders only."""
        folder = self.folder
        if folder.is_absolute() or folder != self.recipe.folder:
            folder = Path(*folder.parts[-2:])
        return folder.joinpath(*parts).as_posix()


@dataclass(frozen=True)
class Scored:
    """A model and its scores; `low` and `high` bound the exact match of `judged` answers (95%, Wilson)."""

    name: str
    role: str
    label: str
    found: dict[str, Any]
    gaps: dict[str, Any]
    source: str
    judged: int
    low: float | None
    high: float | None


def scored(run: Run, summary: dict) -> list[Scored]:
    """Teacher, student before, every stage, then whatever else was evaluated."""
    recipe = run.recipe
    roles = {recipe.teacher: "teacher"} if recipe.teacher else {}
    roles |= {recipe.student: "before"} | dict.fromkeys(recipe.stages, "after")
    names = [name for name in roles if name in summary["models"]]
    names += [name for name in summary["models"] if name not in roles]
    rows = []
    for name in names:
        role = roles.get(name, "other")
        label = {"before": f"{name} before", "after": f"after {name}"}.get(role, name)
        if role == "teacher" and name != "teacher":
            label = f"{name} (teacher)"
        found = read_json(run.file("evaluation", f"{name}.json"))
        judged = sum(answer.get("correct") is not None for answer in found["answers"])
        exact = found.get("exact_match") is not None and judged > 0
        bounds = wilson(found["exact_match"], judged) if exact else (None, None)
        source = run.label("evaluation", f"{name}.json")
        rows.append(Scored(name, role, label, found, summary["stages"].get(name, {}), source, judged, *bounds))
    return rows


def wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a share of `count` trials (Wilson 1927)."""
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    spread = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - spread), min(1.0, middle + spread)


def samples(run: Run, models: list[Scored]) -> dict[str, Any]:
    """Held-out prompts side by side: the first ones as they come, then the first the last stage got wrong."""
    answers = [{answer["prompt_id"]: answer for answer in model.found["answers"]} for model in models]
    if not answers:
        return {"first": [], "mistakes": [], "long": False}
    ids = list(dict.fromkeys(key for found in answers for key in found))
    first = ids[: run.recipe.report.samples]
    last = next((found for model, found in zip(models[::-1], answers[::-1], strict=True)
                 if model.role == "after"), {})  # fmt: skip
    wrong = [key for key in ids[len(first) :] if last.get(key, {}).get("correct") is False]

    def row(key: str) -> dict:
        given = next(found[key] for found in answers if key in found)
        return {
            "messages": [{**message, **_shortened(message["content"])} for message in given["messages"]],
            "reference": _shortened(given.get("reference")),
            "answers": [{**found[key], **_shortened(found[key]["answer"])} if key in found else None
                        for found in answers],
        }  # fmt: skip

    rows = [row(key) for key in [*first, *wrong[: MOST_MISTAKES if first else 0]]]
    parts = [part for row in rows for part in (*row["messages"], row["reference"], *filter(None, row["answers"]))]
    long = any(len(part["text"]) > LONGEST_CELL for part in parts)
    return {"first": rows[: len(first)], "mistakes": rows[len(first) :], "long": long}


def _shortened(text: str | None) -> dict[str, Any]:
    text = text or ""
    return {"text": text[:LONGEST_TEXT], "more": max(0, len(text) - LONGEST_TEXT)}


def ledger(run: Run) -> dict[str, Any]:
    """The dataset's ledger, each drop with its share and in words, and whether the counts add up."""
    book = read_json(run.file("dataset", "ledger.json"))
    accounts = []
    for kind, total in (("prompts", "read"), ("samples", "asked")):
        account = book[kind]
        dropped = [{"reason": reason, "count": count, "why": WHY_DROPPED[kind].get(reason, "")}
                   for reason, count in account["dropped"].items() if count]  # fmt: skip
        together = account["kept"] + sum(drop["count"] for drop in dropped)
        balanced = together == account[total]
        if kind == "samples":
            balanced &= account["asked"] == book["prompts"]["kept"] * book["num_generations"]
        accounts.append({"kind": kind, "verb": total, "total": account[total], "kept": account["kept"],
                         "dropped": dropped, "sum": together, "balanced": balanced})  # fmt: skip
    return {
        "accounts": accounts,
        "num_generations": book["num_generations"],
        "batches": book.get("batches", {}),
        "source": run.label("dataset", "ledger.json"),
    }


def lengths(run: Run, batches: list[str]) -> dict[str, Any] | None:
    """Tokens in the completions of `batches`, by finish reason; reads two columns, a row group at a time."""
    tokens: dict[str, list[np.ndarray]] = {"stop": [], "length": [], "other": []}
    files = [path for name in batches if (path := run.file("completions", f"{name}.parquet")).exists()]
    for path in files:
        with pq.ParquetFile(path) as file:
            for rows in file.iter_batches(columns=["completion_token_ids", "finish_reason"]):
                count = pc.list_value_length(rows["completion_token_ids"]).fill_null(0).to_numpy()
                reason = np.array(rows["finish_reason"].to_pylist(), dtype=object)
                known = {kind: reason == kind for kind in ("stop", "length")}
                known["other"] = ~(known["stop"] | known["length"])
                for kind, mask in known.items():
                    tokens[kind].append(count[mask])
    by_reason = {kind: np.concatenate(parts) for kind, parts in tokens.items() if any(map(len, parts))}
    if not by_reason:
        return None
    everything = np.concatenate(list(by_reason.values()))
    low, middle, high = np.percentile(everything, [5, 50, 95])
    return {
        "tokens": by_reason,
        "count": len(everything),
        "total": int(everything.sum()),
        "middle": middle,
        "low": low,
        "high": high,
        "longest": int(everything.max()),
        "cut": len(by_reason.get("length", ())),
        "files": len(files),
        "missing": len(batches) - len(files),
        "source": run.label("completions", "*.parquet"),
    }


def stages(run: Run) -> list[dict[str, Any]]:
    """Every stage's settings, its `final.json`, and the logged steps that have a finite loss."""
    found = []
    for name, settings in run.recipe.stages.items():
        log = run.file("students", name, "metrics.jsonl")
        rows = read_jsonl(log) if log.exists() else []
        finite = [row for row in rows if row.get("loss") is not None and math.isfinite(row["loss"])]
        found.append({
            "name": name,
            "settings": settings,
            "final": read_json(run.file("students", name, "final.json")),
            "rows": finite,
            "not_finite": len(rows) - len(finite),
            "source": run.label("students", name, "final.json"),
            "log": run.label("students", name, "metrics.jsonl"),
        })  # fmt: skip
    return found


def compatibility(run: Run) -> dict[str, Any] | None:
    """Teacher and student, fact by fact, the checks between them and what each objective may do."""
    path = run.file("compatibility.json")
    if not path.exists():
        return None
    found = read_json(path)
    sides = [found.get(role) or {} for role in ("teacher", "student")]
    facts = [(key, *(side.get(key) for side in sides)) for key in dict.fromkeys([*sides[0], *sides[1]])]
    return {
        "facts": facts,
        "checks": found.get("checks") or [],
        "objectives": found.get("objectives") or {},
        "source": run.label("compatibility.json"),
    }


def disk(run: Run) -> list[dict[str, Any]]:
    """Bytes of each part of the run's folder that is complete by now, and what its loss would cost."""
    parts = [
        ("prompts", "made again from the source"),
        ("completions", "asked for again, or written from work/ at once"),
        ("dataset", "made again from the completions"),
        ("students", "trained again"),
        ("work", "may go at any time: it saves asking the teacher again"),
    ]
    found = [(run.folder / name, name, missed) for name, missed in parts]
    return [
        {"bytes": size, "missed": missed, "source": run.label(name)}
        for folder, name, missed in found
        if (size := folder_bytes(folder))
    ]
