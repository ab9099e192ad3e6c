"""A folder as one commit of a repository on the Hugging Face Hub.

An attempt reads the head, compares every file with it by hash, and commits the difference with the head as its
parent. The server refuses a commit whose parent is no longer the head. An attempt that failed, its reply lost or
not, is followed by one that starts from the head that is there: what arrived is found and not sent again, so that
there is never a second commit. Large files go to the Hub's storage before the commit; what the storage has is not
sent again either.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from json import JSONDecodeError
from pathlib import PurePosixPath

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, errors, get_token
from huggingface_hub.hf_api import RepoFile

from distill.config.results import Target
from distill.errors import DistillError
from distill.publishing.contents import File
from distill.retries import is_transient, patiently, retry_after

LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
AGAIN = "run the same command again, what has arrived is not sent twice"
# What earlier publications put there and this one no longer has; anything else in a repository is its owner's.
OURS = {"dataset": ("data/*", "jsonl/*"), "model": ("*.safetensors", "*.safetensors.index.json")}
XET_STATUS = re.compile(r"HTTP status (?:client|server) error \((\d{3})")
TROUBLE = (errors.HfHubHTTPError, errors.OfflineModeIsEnabled, httpx2.HTTPError, RuntimeError, OSError, ValueError)


@dataclass(frozen=True)
class Difference:
    """What separates a commit from the folder."""

    head: str
    add: list[File]
    delete: list[str]


def publish_to_hub(files: list[File], target: Target, kind: str, message: str) -> dict[str, object]:
    """Let the head of the target's branch hold `files`; returns {commit, url, sent}.

    kind: dataset or model. A repository that is not there is made, private unless the target says otherwise; a
    public one is refused while the target says private. What cannot be done is a `DistillError`.
    """
    return _Repository(HfApi(), target, kind).publish(files, message)


class _Repository:
    def __init__(self, api: HfApi, target: Target, kind: str):
        self.api, self.target, self.kind = api, target, kind
        self.name = target.to.removeprefix("hf://")
        self.which = {"repo_id": self.name, "repo_type": kind}
        self.page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{self.name}"
        self.sent: set[str] = set()

    def publish(self, files: list[File], message: str) -> dict[str, object]:
        try:
            for attempt in patiently(_transient, _asked):
                with attempt:
                    self._ensure()
                    commit = self._attempt(files, message)
        except errors.HFValidationError:
            raise DistillError(f"{self.target.to} is no place on the Hub: hf://owner/name") from None
        except TROUBLE as error:
            raise DistillError(self._reason(error)) from None
        url = f"{self.page}/tree/{commit}"
        return {"commit": commit, "url": url, "sent": sorted(self.sent)}

    def _attempt(self, files: list[File], message: str) -> str:
        """The head that holds the files, committed now or found."""
        difference = self._compare(files)
        if not difference.add and not difference.delete:
            return difference.head
        operations = [CommitOperationAdd(file.name, _payload(file)) for file in difference.add]
        self.sent |= {file.name for file in difference.add}
        info = self.api.create_commit(
            operations=[*operations, *map(CommitOperationDelete, difference.delete)],
            commit_message=message,
            revision=self.target.branch,
            parent_commit=difference.head,
            **self.which,
        )
        return info.oid

    def _ensure(self) -> None:
        """Make the repository and the branch where they are missing."""
        try:
            info = self.api.repo_info(**self.which)
        except errors.RepositoryNotFoundError:
            self.api.create_repo(**self.which, private=self.target.private, exist_ok=True)
            info = self.api.repo_info(**self.which)
        if self.target.private and not info.private:
            raise DistillError(
                f"{self.page} is public, and this target says private: make it private there, or set "
                "`private: false` to publish for everybody"
            )
        try:
            self.api.repo_info(**self.which, revision=self.target.branch)
        except errors.RevisionNotFoundError:
            self.api.create_branch(**self.which, branch=self.target.branch, exist_ok=True)

    def _compare(self, files: Iterable[File]) -> Difference:
        """By hash, with the branch's head; a file that it has is not among those to add."""
        head = self.api.repo_info(**self.which, revision=self.target.branch).sha
        tree = self.api.list_repo_tree(**self.which, revision=head, recursive=True)
        there = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
        wanted = {file.name: file for file in files}
        add = [file for name, file in wanted.items() if name not in there or not _same(file, there[name])]
        stale = [
            name for name in there.keys() - wanted.keys() if any(PurePosixPath(name).match(p) for p in OURS[self.kind])
        ]
        return Difference(head, add, sorted(stale))

    def _reason(self, error: Exception) -> str:
        """What went wrong and what to do about it, on one line."""
        at, hub = self.page, constants.ENDPOINT
        while not isinstance(error, (errors.HfHubHTTPError, httpx2.HTTPError)) and error.__cause__ is not None:
            error = error.__cause__
        status = _status(error)
        if isinstance(error, errors.OfflineModeIsEnabled):
            return f"{at} cannot be reached, HF_HUB_OFFLINE is set: unset it to publish"
        if status == 401 and get_token() is None:
            return f"{hub} lets nobody write to {at} without a token (401): {LOG_IN}"
        if status == 401:
            return f"{hub} refused the token in use for {at} (401): {LOG_IN} anew"
        if status == 403 or isinstance(error, PermissionError):  # the second is the Xet transfer's
            return f"{hub} forbids the token in use to write to {at} (403): take one with write access to it"
        if isinstance(error, errors.RepositoryNotFoundError):
            return f"{at} is not there, or hidden from the token in use: check the name, or {LOG_IN}"
        if status in (409, 412):
            return (
                f"{at} is written to by somebody else all the time ({status}): wait until they are done, then {AGAIN}"
            )
        if status is not None and status < 500 and status != 429:
            return f"{hub} refused {at} ({status}): {_first_line(error)}"
        if status is not None:
            return f"{hub} answered {status} for {at}: wait a little, then {AGAIN}"
        if isinstance(error, ValueError) and not isinstance(error, JSONDecodeError):
            return f"{at} was not written: {' '.join(str(error).split())}"
        kind = type(error).__name__
        return f"{at}: no answer from {hub} ({kind}: {_first_line(error)}): check the network; then {AGAIN}"


def _payload(file: File) -> str | bytes:
    return file.content if isinstance(file.content, bytes) else str(file.content)


def _same(file: File, entry: RepoFile) -> bool:
    return entry.lfs.sha256 == file.sha256 if entry.lfs else entry.blob_id == file.oid


def _transient(error: BaseException) -> bool:
    """Whether to look again: the connection broke, the server is busy, or the parent is no longer the head.

    A transfer to the storage wraps what happened in a RuntimeError; an error page where the client expects JSON
    is one of a server in trouble.
    """
    if isinstance(error, errors.OfflineModeIsEnabled):
        return False
    if (status := _status(error)) is not None:
        return is_transient(status)
    if isinstance(error, (JSONDecodeError, ConnectionError, TimeoutError)):
        return True
    if isinstance(error, RuntimeError):
        return error.__cause__ is None or _transient(error.__cause__)
    return isinstance(error, httpx2.TransportError)


def _asked(error: BaseException) -> float | None:
    if isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    told = isinstance(error, errors.HfHubHTTPError)
    return retry_after(error.response.headers.get("Retry-After")) if told else None


def _status(error: BaseException) -> int | None:
    """The HTTP status behind an error, which the Xet transfer tells in words."""
    if isinstance(error, errors.HfHubHTTPError):
        return error.response.status_code
    found = XET_STATUS.search(str(error)) if isinstance(error, OSError) else None
    return found and int(found[1])


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
