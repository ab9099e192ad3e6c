"""One publication: what a folder holds, sent to one place, and the record of it."""

from pathlib import Path
from urllib.parse import urlsplit

from distill import SCHEMA_VERSION
from distill.config.results import Target
from distill.files import write_json
from distill.publishing.bucket import publish_to_bucket
from distill.publishing.contents import contents
from distill.publishing.hub import publish_to_hub


def publish(folder: Path, target: Target, run: str, card: str | None, out: Path) -> str:
    """Publish `folder` to `target`, write the record `out`, and return a line for a person.

    card: the text of README.md where the folder has none. The record is {schema, what, to, files: [{name, size,
    sha256}], sent: [names], and commit and url (Hub), or manifest and generation (buckets)}.
    """
    files = contents(folder, {"README.md": card.encode()} if card is not None else None)
    if urlsplit(target.to).scheme == "hf":
        kind = "dataset" if target.what == "dataset" else "model"
        found = publish_to_hub(files, target, kind, f"{run}: {target.what}")
        where = found["url"]
    else:
        found = publish_to_bucket(files, target, target.what)
        where = found["manifest"]
    record = {"schema": SCHEMA_VERSION, "what": target.what, "to": target.to, **found}
    write_json(out, record | {"files": [file.encode() for file in files]})
    sent = set(found["sent"])
    size = sum(file.size for file in files if file.name in sent)
    return f"{where}: {len(sent)} of {len(files)} files sent ({size:,} bytes)"
