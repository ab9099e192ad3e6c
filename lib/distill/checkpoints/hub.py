"""Model snapshots from the Hub, pinned to a commit.

Files go through the client's own cache (HF_HOME), so that two recipes share one download, a cut download goes
on with the files it has, and HF_HUB_OFFLINE=1 finds what was fetched before. The token is the client's affair
(HF_TOKEN or `hf auth login`): it is never read, printed or written here.
"""

import errno
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, constants, errors, get_cached_repo_tree, get_token, snapshot_download

from distill import SCHEMA_VERSION
from distill.config.models import Model
from distill.errors import DistillError
from distill.files import replacing, write_json

CONFIGS = ["config.json", "generation_config.json"]
TOKENIZER = [
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
]
WEIGHTS = ["*.safetensors", "*.safetensors.index.json"]
# The same weights once more in their maker's own format: tens of gigabytes that nobody reads.
DUPLICATES = ["consolidated*", "*/*.safetensors", "*/*.safetensors.index.json"]
UNREAD = (".bin", ".pth", ".pt", ".ckpt", ".pkl", ".h5", ".msgpack", ".gguf")
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
AGAIN = "run the same command again, what is complete is kept"


def download(source: str, revision: str | None, out: Path) -> str:
    """Put the snapshot of Hub model `source` at `revision` into the folder `out`; return its commit.

    `out` gets configuration, tokenizer, chat template and safetensors, never pickled weights or code, and
    `source.json`: {"schema", "source", "requested", "revision"}, the last being the commit. It is there whole
    or not at all. A revision that can move (None: the default branch) is taken as it stands, with a warning.
    """
    patterns = [*CONFIGS, *TOKENIZER, *WEIGHTS]
    snapshot = _snapshot(source, revision, patterns)
    if not (snapshot / "config.json").is_file():
        raise DistillError(f"{_page(source)} has no config.json at {snapshot.name}: it is no transformers model")
    if not _files(snapshot, WEIGHTS[:1]):
        raise DistillError(_no_safetensors(source, snapshot.name))
    _write(out, _files(snapshot, patterns), source, revision, snapshot.name, _license(source, snapshot.name))
    return snapshot.name


def download_tokenizer(source: str, revision: str | None, out: Path) -> str | None:
    """Put the tokenizer of `source`, a Hub id or a folder, into `out`; return its commit, None for a folder.

    `config.json` and `generation_config.json` come along: the tokenizer's class and the ids that end a turn
    may be named nowhere else.
    """
    folder = Model(source=source).local
    if folder is not None and not folder.is_dir():
        raise DistillError(f"tokenizer folder {source} does not exist")
    snapshot = folder or _snapshot(source, revision, [*CONFIGS, *TOKENIZER])
    commit = None if folder else snapshot.name
    if not (files := _files(snapshot, TOKENIZER)):
        raise DistillError(f"{source} has no tokenizer (no tokenizer.json or the like): name a model that has one")
    _write(out, files | _files(snapshot, CONFIGS), source, revision, commit)
    return commit


def _snapshot(source: str, revision: str | None, patterns: list[str]) -> Path:
    """The folder in the client's cache that holds the files; its name is the commit."""
    with _explained(source, revision):
        folder = snapshot_download(
            source, revision=revision, allow_patterns=patterns, ignore_patterns=DUPLICATES, max_workers=4
        )
    snapshot = Path(folder)
    if revision != snapshot.name:
        print(f"warning: {source} is taken at {revision or 'its default branch'}, which can move: "
              f"pin it with `revision: {snapshot.name}`", file=sys.stderr)  # fmt: skip
    return snapshot


def _files(snapshot: Path, patterns: list[str]) -> dict[str, Path]:
    """Name and place of what `patterns` name; the cache's folder may hold more, put there by others."""
    found = chain.from_iterable(snapshot.glob(pattern) for pattern in patterns)
    files = {path.relative_to(snapshot).as_posix(): path for path in found if path.is_file()}
    return {name: path for name, path in files.items() if not name.startswith("consolidated")}


def _license(source: str, commit: str) -> str | None:
    """What the model's own card says; offline, or without a card, nothing."""
    try:
        card = HfApi().model_info(source, revision=commit).card_data
    except (errors.HfHubHTTPError, errors.OfflineModeIsEnabled, httpx2.HTTPError):
        return None
    return card.get("license") if card else None


def _write(
    out: Path,
    files: dict[str, Path],
    source: str,
    requested: str | None,
    commit: str | None,
    license: str | None = None,
) -> None:
    """Make the folder `out` of `files` and `source.json`."""
    with replacing(out) as folder:
        for name, path in files.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if name.endswith(".safetensors"):
                _link(path.resolve(), target)
            else:  # small, and someone may edit it: the cache must not change with it
                shutil.copyfile(path, target)
        record = {"schema": SCHEMA_VERSION, "source": source, "requested": requested, "revision": commit}
        write_json(folder / "source.json", record | ({"license": license} if license else {}))


def _link(file: Path, target: Path) -> None:
    """A hard link costs no space and outlives the cache; across disks, or where there are none, copy."""
    try:
        os.link(file, target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        shutil.copyfile(file, target)


@contextmanager
def _explained(source: str, revision: str | None) -> Iterator[None]:
    """Turn what the client raises into one line that says what to do; a full disk stays an OSError."""
    try:
        yield
    except errors.HFValidationError:
        raise DistillError(f"{source!r} is neither a folder nor a Hub id such as owner/name") from None
    except (errors.HfHubHTTPError, errors.EntryNotFoundError, httpx2.HTTPError) as error:
        raise DistillError(_reason(error, source, revision or "its default branch")) from None
    except (RuntimeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        if "os error 28" in str(error):  # the Xet transfer tells of a full disk in words only
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), constants.HF_HUB_CACHE) from None
        raise DistillError(f"{source}: the transfer broke off ({_first_line(error)}): {AGAIN}") from None


def _reason(error: Exception, source: str, revision: str) -> str:
    """What went wrong and what to do about it."""
    page, hub = _page(source), constants.ENDPOINT
    if isinstance(error, errors.LocalEntryNotFoundError):  # "not in the cache"; why not from the Hub is its cause
        error = error.__cause__ or error
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    match error:
        case errors.OfflineModeIsEnabled():
            return (
                f"{source} at {revision} is not, or not whole, in the cache {constants.HF_HUB_CACHE}, and "
                "HF_HUB_OFFLINE is set: unset it, or fetch it once where there is a network"
            )
        case errors.GatedRepoError() if get_token():
            return f"{source} is gated and the token in use has no access to it: ask for it at {page}"
        case errors.GatedRepoError():
            return f"{source} is gated: ask for access at {page}, then {LOG_IN}"
        case errors.RevisionNotFoundError():
            return f"{source} has no revision {revision}: {page}/commits/main lists what there is"
        case errors.RepositoryNotFoundError() if get_token():
            return f"{source} is not on {hub}, or hidden from the token in use: check the id, or ask at {page}"
        case errors.RepositoryNotFoundError():
            return f"{source} is not on {hub}, or private: check the id at {page}; for a private one {LOG_IN}"
        case errors.HfHubHTTPError() if status == 401:
            return f"{hub} refused the token in use for {page} (401): {LOG_IN} anew"
        case errors.HfHubHTTPError() if status == 403:
            return f"{hub} forbids {source} to the token in use (403): see {page}, and what the token permits"
        case errors.HfHubHTTPError():
            return f"{hub} answered {status} for {source}: wait a little, then {AGAIN}"
        case httpx2.HTTPError():
            return (
                f"{source}: no answer from {hub} ({type(error).__name__}: {_first_line(error)}): check the "
                f"network, proxy and HF_ENDPOINT; then {AGAIN}"
            )
    return f"{source}: {_first_line(error)}"


def _no_safetensors(source: str, commit: str) -> str:
    """Why a repository without safetensors is refused, with the weights that it does have."""
    try:
        listed = [file.path for file in get_cached_repo_tree(source, revision=commit)]
    except errors.CachedRepoTreeNotFoundError:
        listed = []
    weights = [path for path in listed if path.endswith(UNREAD)]
    there = f", only {weights[0]}{f' and {len(weights) - 1} more' if weights[1:] else ''}" if weights else ""
    return (
        f"{source} has no safetensors at {commit}{there}: pickled weights can run code and are never opened; "
        f"take a revision or a model with safetensors, see {_page(source)}/tree/{commit}"
    )


def _page(source: str) -> str:
    return f"{constants.ENDPOINT}/{source}"


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
