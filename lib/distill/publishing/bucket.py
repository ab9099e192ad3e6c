"""A folder in a bucket of GCS or S3: immutable files under their content's hash, a manifest written last.

    {to}/data/{sha256}{suffix}         a file, for as long as anybody names it
    {to}/manifests/{sha256}.json       which files one publication has, under its own hash

Nothing is ever overwritten: a file is created where there is none, and one that is there is not sent. Whoever
reads starts from a manifest, so that half a publication is none. What a killed client left in S3 of an object that
goes there in parts, which nobody sees and everybody pays, is taken away before the object is sent anew.
"""

import base64
import json
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec

from distill import SCHEMA_VERSION
from distill.config.results import Target
from distill.errors import DistillError
from distill.publishing.contents import File
from distill.retries import is_transient, patiently

AGAIN = "run the same command again, what has arrived is not sent twice"
LOG_IN = {
    "gs": "log in with `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS",
    "s3": "log in with `aws configure`, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
}
CLIENT = {"gs": "gcsfs", "s3": "s3fs"}
PARTS = 10_000  # that S3 takes of one object
PART_BYTES = {"s3": 50 << 20}  # an object of twice as many or more goes to S3 in parts; gcsfs has a size of its own


def publish_to_bucket(files: list[File], target: Target, what: str) -> dict[str, Any]:
    """Let the bucket hold `files` and a manifest of them; returns {manifest, generation, sent}.

    The credentials are the client's own affair. What cannot be done is a `DistillError`.
    """
    return _Bucket(target.to.rstrip("/")).publish(files, what)


class _Bucket:
    def __init__(self, to: str):
        self.to, self.scheme = to, urlsplit(to).scheme
        logging.getLogger(CLIENT[self.scheme]).setLevel(logging.CRITICAL)  # what it raises is told here, on one line
        try:
            self.fs = fsspec.filesystem(self.scheme, skip_instance_cache=True, use_listings_cache=False)
        except ImportError:
            raise DistillError(
                f"{to} needs {CLIENT[self.scheme]}, which is not installed: pip install 'distill[publish]'"
            ) from None

    def publish(self, files: list[File], what: str) -> dict[str, Any]:
        places = {file.name: f"{self.to}/data/{file.sha256}{Path(file.name).suffix}" for file in files}
        sent = [file.name for file in files if self._put(file, places[file.name])]
        listed = [{**file.encode(), "at": places[file.name]} for file in files]
        text = json.dumps({"schema": SCHEMA_VERSION, "what": what, "files": listed}, indent=1) + "\n"
        manifest = File.of("manifest.json", text.encode())
        at = f"{self.to}/manifests/{manifest.sha256}.json"
        self._put(manifest, at)
        info = self._patiently(lambda: self._info(at)) or {}
        generation = next((info[name] for name in ("generation", "VersionId", "ETag") if info.get(name)), None)
        return {"manifest": at, "generation": generation, "sent": sent}

    def _put(self, file: File, at: str) -> bool:
        """Create an object; False when it is there already. Its size, and checksum where told, are read back."""
        sent = False

        def attempt() -> None:
            nonlocal sent
            if self._holds(file, at):
                return
            if not sent:
                self._abort_unfinished(file, at)
            sent = True
            self._create(file, at)
            if not self._holds(file, at):
                raise OSError(f"{at} is not there after it was written")

        self._patiently(attempt)
        return sent

    def _patiently(self, action: Callable[[], Any]) -> Any:
        """What `action` gives in the end; whatever else it raises is explained."""
        try:
            return patiently(self._transient, lambda error: None)(action)
        except DistillError:
            raise
        except Exception as error:
            raise DistillError(self._reason(error)) from None

    def _create(self, file: File, at: str) -> None:
        try:
            if isinstance(file.content, bytes):
                self.fs.pipe_file(at, file.content, mode="create")
            else:
                parts = {"chunksize": size} if (size := self._part_size(file)) else {}
                self.fs.put_file(str(file.content), at, mode="create", **parts)
        except FileExistsError:
            pass  # a lost reply, or another one of us: what is there is looked at next

    def _part_size(self, file: File) -> int | None:
        """Bytes of a part; None where that is the client's affair."""
        size = PART_BYTES.get(self.scheme)
        return size and max(size, -(-file.size // PARTS))

    def _abort_unfinished(self, file: File, at: str) -> None:
        """Abort uploads of this object in parts. One that is going on elsewhere is sent again by whoever sends it.

        A login that may send and not list leaves them to the bucket's own rules.
        """
        if self.scheme != "s3" or file.size < 2 * self._part_size(file):
            return
        bucket, key, _ = self.fs.split_path(at)
        with suppress(PermissionError):
            for upload in self.fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=key).get("Uploads", []):
                if upload["Key"] == key:
                    self.fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=upload["UploadId"])

    def _holds(self, file: File, at: str) -> bool:
        """Whether the object is there; one with other bytes than its name promises is a `DistillError`."""
        info = self._info(at)
        if info is None:
            return False
        theirs = _md5(info)
        if info["size"] != file.size or theirs not in (None, file.md5):
            raise DistillError(
                f"{at} has {info['size']} bytes, not the {file.size} of {file.name}, or other ones: somebody else "
                "wrote it; delete it there, or publish to another folder"
            )
        return True

    def _info(self, at: str) -> dict[str, Any] | None:
        self.fs.invalidate_cache()
        try:
            return self.fs.info(at)
        except FileNotFoundError:
            return None

    def _transient(self, error: BaseException) -> bool:
        if _aborted(error):
            return True
        if isinstance(error, (DistillError, PermissionError, FileNotFoundError)) or _forbidden(error):
            return False
        if (status := _status(error)) is not None:
            return is_transient(status)
        return isinstance(error, OSError) or type(error).__name__ in (
            "ClientError", "ClientPayloadError", "ServerDisconnectedError", "ConnectionClosedError",
            "EndpointConnectionError", "ReadTimeoutError", "ConnectTimeoutError", "HTTPClientError",
        )  # fmt: skip

    def _reason(self, error: BaseException) -> str:
        status, bucket = _status(error), urlsplit(self.to).netloc
        words = " ".join(str(error).split())[:200] or type(error).__name__
        login = LOG_IN[self.scheme]
        if isinstance(error, FileNotFoundError) or status == 404 or "NoSuchBucket" in words:
            return f"bucket {bucket} does not exist, or is hidden from the login in use: make it, or check its name"
        if status == 401 or type(error).__name__ in ("NoCredentialsError", "DefaultCredentialsError"):
            return f"{self.to} asks who you are (401): {login}"
        if isinstance(error, PermissionError) or status == 403 or _forbidden(error):
            return f"{self.to} is forbidden to the login in use (403): give it write access to the bucket, or {login}"
        if status is not None and not is_transient(status):
            return f"{self.to} refused what was sent ({status}: {words})"
        return f"{self.to}: no success ({status or type(error).__name__}: {words}): wait a little, then {AGAIN}"


def _forbidden(error: BaseException) -> bool:
    """How gcsfs tells of a 403: in words."""
    return isinstance(error, OSError) and str(error).startswith("Forbidden")


def _aborted(error: BaseException) -> bool:
    """Whether somebody ended an upload in parts while it went on."""
    response = getattr(error.__cause__ or error, "response", None)
    return isinstance(response, dict) and response.get("Error", {}).get("Code") == "NoSuchUpload"


def _md5(info: dict[str, Any]) -> str | None:
    """The MD5 that GCS tells of an object that came in one piece; S3's ETag is one only now and then."""
    return base64.b64decode(info["md5Hash"]).hex() if "md5Hash" in info else None


def _status(error: BaseException) -> int | None:
    """The HTTP status behind an error of gcsfs (`code`) or of botocore (`response`)."""
    response = getattr(error.__cause__ or error, "response", None)
    code = getattr(error, "code", None)
    if isinstance(response, dict):
        code = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return int(code) if isinstance(code, int) or str(code).isdigit() else None
