"""Completions that are no longer needed here: removed once their dataset lies elsewhere, and that is confirmed."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from distill import SCHEMA_VERSION
from distill.errors import DistillError
from distill.files import read_json, write_json
from distill.publishing.contents import contents


def remove_completions(dataset: Path, records: Iterable[Path], completions: Path, work: Path, out: Path) -> str:
    """Delete the files of `completions` and the journals in `work`, and say in `out` what is gone.

    Nothing is deleted before one of the publications' `records` names every file of `dataset` with the hash that
    it has now. Returns a line for a person.
    """
    wanted = {(file.name, file.sha256) for file in contents(dataset)}
    told = {path: read_json(path) for path in records}
    places = [
        record["to"]
        for record in told.values()
        if record["what"] == "dataset" and wanted <= {(file["name"], file["sha256"]) for file in record["files"]}
    ]
    if not places:
        raise DistillError(
            f"no record among {', '.join(map(str, told)) or 'none'} has the dataset as it is now: nothing was removed; "
            "publish it again"
        )
    files = sorted(completions.glob("*.parquet"))
    listed = [{"name": path.name, "size": path.stat().st_size} for path in files]
    for path in files:
        path.unlink()
    shutil.rmtree(work, ignore_errors=True)
    write_json(out, {"schema": SCHEMA_VERSION, "published": places, "removed": listed})
    size = sum(file["size"] for file in listed)
    return f"{len(listed)} files of completions removed ({size:,} bytes), their dataset is at {', '.join(places)}"
