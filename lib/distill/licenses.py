"""Licenses, as models and datasets name them."""

import re
from pathlib import Path

import yaml

from distill.files import read_json


def license_of(folder: Path) -> str | None:
    """The license that a model's or a dataset's own card names; None where there is no card, or none in it.

    `source.json`, which a download leaves, or the front matter of README.md.
    """
    if (folder / "source.json").is_file():
        return read_json(folder / "source.json").get("license")
    if not (folder / "README.md").is_file():
        return None
    parts = re.split(r"^---\s*$", (folder / "README.md").read_text(encoding="utf-8"), maxsplit=2, flags=re.MULTILINE)
    try:
        front = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    except yaml.YAMLError:
        return None
    named = front.get("license") if isinstance(front, dict) else None
    return ", ".join(map(str, named)) if isinstance(named, list) else named and str(named)
