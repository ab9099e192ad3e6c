"""`plan.json`: counts, disk, memory, work, and what would not fit."""

import shutil
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from distill.config.recipe import Recipe
from distill.errors import DistillError
from distill.planning import disk
from distill.planning.counts import Counts, Steps, count, stage_steps
from distill.planning.devices import Machine, machine
from distill.planning.models import Known, known_models, model_of
from distill.planning.programs import Program, compiled, decode_program, simulated, train_program
from distill.planning.work import generation_work, training_work

SCHEMA = 2


def plan(recipe: Recipe, index: Path, configs: dict[str, Path | None]) -> dict[str, Any]:
    """What the recipe comes to; a number that nothing here can tell is null.

    index: prompts/index.json, if it is there. configs: for each model the file that describes it, or None. Compiling
    is told on stderr, since at full size it takes a while.
    """
    counts, ours, models = count(recipe, index), machine(recipe.plan), known_models(recipe, configs)
    steps = {name: stage_steps(recipe, stage, counts) for name, stage in recipe.stages.items()}
    programs, faults = _programs(recipe, models, steps)
    memory = {name: _memory(name, program, recipe.plan.compile) for name, program in programs.items()}
    targets = disk.targets(recipe, models, counts)
    work = _work(recipe, models, counts, steps, ours, programs)
    hours = [part.hours for part in work.values()]
    certain, possible = _too_large(memory, ours)
    return {
        "schema": SCHEMA,
        "run": recipe.run,
        "folder": str(recipe.folder),
        "teacher": recipe.models[recipe.teacher].source if recipe.teacher else None,
        "student": recipe.models[recipe.student].source,
        "parameters": {name: known.parameters for name, known in models.items()},
        **_counted(recipe, counts),
        "stages": {
            name: {"init": stage.init, "data": stage.data_in_words} | steps[name]._asdict()
            for name, stage in recipe.stages.items()
        },
        "targets": [target._asdict() for target in targets],
        "disk_bytes": disk.peak(targets),
        "machine": ours._asdict() | {"mfu": recipe.plan.mfu, "bandwidth_use": recipe.plan.bandwidth_use},
        "memory_per_device": memory,
        "work": {name: part._asdict() for name, part in work.items()},
        "hours": None if None in hours else sum(hours),
        "does_not_fit": [*faults, *_too_long(recipe, models), *certain, *_no_room(recipe, targets)],
        "may_not_fit": possible,
        "starts_over": _starts_over(recipe),
        "not_known": [_no_config(recipe, name) for name, file in configs.items() if file is None],
    }


def _counted(recipe: Recipe, counts: Counts) -> dict[str, Any]:
    own = recipe.dataset.completions == "own"
    return {
        "has_prompts": recipe.prompts is not None,
        "indexed": counts.indexed,
        "batches": counts.batches,
        "prompts": counts.prompts,
        "samples_a_prompt": recipe.generation.num_generations,
        "samples": counts.samples,
        "tokens": {
            "a_prompt": counts.prompt_tokens,
            "a_completion": counts.completion_tokens,
            "assumed": [name for name in ("prompt_tokens", "completion_tokens") if getattr(recipe.plan, name)],
            "read": None if counts.prompts is None else counts.prompts * counts.prompt_tokens,
            "written": 0 if own else None if counts.samples is None else counts.samples * counts.completion_tokens,
        },
    }


def _programs(
    recipe: Recipe, models: dict[str, Known], steps: dict[str, Steps]
) -> tuple[dict[str, Program], list[str]]:
    """The programs by name, and why there is none where a mesh does not fit."""
    found, faults = {}, []
    devices, teacher = simulated(recipe.plan.devices), models.get(recipe.teacher or "")
    rented = recipe.prompts is None or recipe.dataset.completions == "own" or recipe.generation.endpoint
    wanted = {}
    if teacher and not rented:
        wanted["generate"] = lambda: decode_program(teacher.config, recipe.generation, teacher.stored, devices)
    for name, stage in recipe.stages.items():
        if known := models.get(model_of(recipe, name)):
            asked = models.get(recipe.teacher_of(name) or "")
            wanted[f"train {name}"] = partial(
                train_program, known.config, stage, known.stored, steps[name].length, devices,
                (asked.config, asked.stored) if asked else None,
            )  # fmt: skip
    for name, make in wanted.items():
        try:
            found[name] = make()
        except DistillError as error:
            faults.append(f"{name}: {error}")
    return found, faults


def _memory(name: str, program: Program, compiling: bool) -> dict[str, Any]:
    """Bytes of one device: the closed form by parts and in total, and the compiler's."""
    told = {"held": program.held, "closed_form": sum(program.held.values()), "compiler": None}
    if compiling:
        print(f"compiling {name} on abstract shapes (a minute or two at full size)", file=sys.stderr, flush=True)
        start = time.monotonic()
        told["compiler"] = compiled(program.lower())._asdict()
        print(f"compiled {name} in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    return told


def _work(
    recipe: Recipe,
    models: dict[str, Known],
    counts: Counts,
    steps: dict[str, Steps],
    ours: Machine,
    programs: dict[str, Program],
) -> dict[str, Any]:
    found = {}
    if "generate" in programs:
        held = sum(programs["generate"].held.values())
        found["generate"] = generation_work(recipe, models[recipe.teacher], counts, ours, held)
    for name, stage in recipe.stages.items():
        if known := models.get(model_of(recipe, name)):
            frozen = stage.lora is not None
            asked = models.get(recipe.teacher_of(name) or "")
            found[f"train {name}"] = training_work(known, steps[name], recipe.plan, ours, frozen=frozen, asked=asked)
    return found


def _no_config(recipe: Recipe, name: str) -> str:
    source = recipe.models[name].source
    return (
        f"{name}: the configuration of {source} is not here, so its memory is not known: "
        f"hf download {source} config.json --local-dir recipes/models/{source}"
    )


def _starts_over(recipe: Recipe) -> list[str]:
    """What a retry costs on machines that share no disk."""
    if recipe.storage.work:
        return []
    return [
        "a batch or a stage that is tried again on another machine, with no disk in common (a pod), has nothing to go "
        "on from: storage.work names a volume's folder, gs://bucket/folder or s3://bucket/folder to keep it in"
    ]


def _too_long(recipe: Recipe, models: dict[str, Known]) -> list[str]:
    """Sequences beyond a model's context."""
    longest = "generation.max_target_length", recipe.generation.max_target_length
    lengths = {recipe.teacher: longest} if recipe.teacher and recipe.prompts else {}
    for name, stage in recipe.stages.items():
        lengths[name] = f"stages.{name}.max_length", stage.max_length or recipe.generation.max_target_length
    return [
        f"{setting} is {length}, the context of {model_of(recipe, name)} is {known.config.max_positions}: lower it"
        for name, (setting, length) in lengths.items()
        if (known := models.get(model_of(recipe, name))) and length > known.config.max_positions
    ]


def _too_large(memory: dict[str, Any], ours: Machine) -> tuple[list[str], list[str]]:
    """Programs that need more than a device has: for certain by the closed form, perhaps by the CPU's compiler."""
    certain, possible = [], []
    if ours.memory is None:
        return certain, possible
    has = f"a device has {ours.memory / 2**30:.1f}"
    remedy = "take more devices, a mesh that spreads it further, fewer slots or rows at a time, or lora"
    for name, told in memory.items():
        peak = told["compiler"]["peak"] if told["compiler"] else 0
        if told["closed_form"] > ours.memory:
            certain.append(f"{name} holds {told['closed_form'] / 2**30:.1f} GiB a device, {has}: {remedy}")
        elif peak > ours.memory:
            possible.append(f"{name}: {peak / 2**30:.1f} GiB a device by the CPU's compiler, {has}: {remedy}")
    return certain, possible


def _no_room(recipe: Recipe, targets: list[disk.Target]) -> list[str]:
    folder = next(path for path in [recipe.results.absolute(), *recipe.results.absolute().parents] if path.exists())
    free, need = shutil.disk_usage(folder).free, disk.peak(targets)
    if need <= free:
        return []
    return [f"the run wants {need / 1e9:,.0f} GB, {folder} has {free / 1e9:,.0f} free: set `results` to another disk"]
