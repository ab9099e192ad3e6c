"""A plan as lines for the terminal."""

from typing import Any

FAULTS = ("does_not_fit", "may_not_fit", "starts_over", "not_known")
FOOT = "GiB: closed form, without activations. compiler: all of it, by the CPU's, which may widen bfloat16."


def table(counted: dict[str, Any]) -> str:
    """Counts, disk, memory, work, and at the end what would not fit."""
    parts = [_counts(counted), _disk(counted), _memory(counted), _work(counted), _faults(counted)]
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _counts(counted: dict[str, Any]) -> list[str]:
    unknown = "all that the dataset has" if not counted["indexed"] else "none"
    bound, tokens = "" if counted["indexed"] else "at most ", counted["tokens"]

    def number(value: int | None) -> str:
        return unknown if value is None else f"{bound}{value:,}"

    def length(of: str) -> str:
        """The mean that the recipe assumes, or the most that there may be."""
        return f"of {tokens[f'a_{of}']:,} tokens" + (
            " (assumed)" if f"{of}_tokens" in tokens["assumed"] else " at most"
        )

    def model(role: str) -> str:
        size = counted["parameters"].get(role)
        return counted[role] + (f" ({size / 1e9:.2f}B parameters)" if size else "")

    rows = [
        ("run", f"{counted['run']} in {counted['folder']}"),
        ("teacher", model("teacher") if counted["teacher"] else "none"),
        ("student", model("student")),
    ]
    if counted["has_prompts"]:
        samples = f"{number(counted['samples'])} ({counted['samples_a_prompt']} a prompt)"
        rows += [
            ("batches", number(counted["batches"])),
            ("prompts", f"{number(counted['prompts'])}, {length('prompt')}"),
            ("samples", f"{samples}, {length('completion')}"),
            ("tokens", f"{number(tokens['read'])} read, {number(tokens['written'])} written"),
        ]
    for name, stage in counted["stages"].items():
        steps = "as many steps as the data gives" if stage["steps"] is None else f"{stage['steps']:,} steps"
        rows.append((f"stage {name}", f"from {stage['init']}, on {stage['data']} answers, {steps}"))
    return _aligned(rows)


def _disk(counted: dict[str, Any]) -> list[str]:
    rows = [("disk", "GB", "files", "")]
    for target in counted["targets"]:
        files = "" if target["files"] is None else f"{target['files']:,}"
        rows.append((target["path"], _size(target["bytes"], 1e9), files, "" if target["kept"] else "while it trains"))
    rows.append(("at most together", _size(counted["disk_bytes"], 1e9), "", ""))
    return _aligned(rows, right=(1, 2))


def _memory(counted: dict[str, Any]) -> list[str]:
    if not counted["memory_per_device"]:
        return []
    machine, rows = counted["machine"], [("memory of a device", "GiB", "compiler", "made of")]
    for name, told in counted["memory_per_device"].items():
        held = " + ".join(f"{part} {_size(size, 2**30)}" for part, size in told["held"].items())
        peak = told["compiler"] and told["compiler"]["peak"]
        rows.append((name, _size(told["closed_form"], 2**30), _size(peak, 2**30), held))
    has = _size(machine["memory"], 2**30)
    kind = f"{machine['devices']} × {machine['device'] or 'device'}"
    lines = _aligned([*rows, (f"there is ({kind})", has, "", "")], right=(1, 2))
    return [*lines, FOOT]


def _work(counted: dict[str, Any]) -> list[str]:
    if not counted["work"]:
        return []
    machine, rows = counted["machine"], [("work", "FLOPs", "hours")]
    for name, part in counted["work"].items():
        operations = "?" if part["operations"] is None else f"{part['operations']:.2e}"
        rows.append((name, operations, _hours(part["hours"])))
    lines = _aligned([*rows, ("together", "", _hours(counted["hours"]))], right=(1, 2))
    at = f"hours at {machine['mfu']:.0%} of the peak, decoding at {machine['bandwidth_use']:.0%} of the bandwidth"
    return [*lines, at + ("" if machine["peak"] else ": plan.device says of what")]


def _faults(counted: dict[str, Any]) -> list[str]:
    return [f"{key.replace('_', ' ')}: {fault}" for key in FAULTS for fault in counted[key]]


def _size(size: float | None, unit: float) -> str:
    return "?" if size is None else f"{size / unit:,.2f}"


def _hours(hours: float | None) -> str:
    return "?" if hours is None else f"{hours:,.1f}"


def _aligned(rows: list[tuple[str, ...]], right: tuple[int, ...] = ()) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    cells = [[f"{v:>{w}}" if i in right else f"{v:{w}}" for i, (v, w) in enumerate(zip(row, widths, strict=True))]
             for row in rows]  # fmt: skip
    return ["  ".join(row).rstrip() for row in cells]
