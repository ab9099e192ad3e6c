"""What becomes of a publication when something goes wrong: fault × target × outcome, the table of docs/data.md.

    .venv/bin/python tests/publishing/faults.py     # prints the table

An outcome is what was seen, not what is hoped for: whether the first run ended well, how many publications there
are to see after it and after a rerun without the fault, and what the error said.
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from places import PLACES, Place, at_hand

from distill.config.recipe import Recipe
from distill.errors import DistillError

ROOT = Path(__file__).resolve().parents[2]
WORDS = {
    "(401)": "error: who are you, with how to log in",
    "(403)": "error: the login in use may not write there",
    "does not exist": "error: no such bucket",
    "wait a little": "error: no success for now",
    "check the network": "error: no answer",
}
WANTED = {"README.md": b"# answers\n", "data/train-00000-of-00002.parquet": b"PAR1 one" * 99,
          "data/train-00001-of-00002.parquet": b"PAR1 two" * 99}  # fmt: skip


def busy(place: Place) -> None:
    place.fail(status=503, times=2)
    place.fail(place.upload, status=503)


def told_to_wait(place: Place) -> None:
    place.fail(status=429, retry_after="3")


def dropped(place: Place) -> None:
    place.fail(place.upload, dropped=True)


def lost_reply(place: Place) -> None:
    place.fail(lost=True)


def stale_parent(place: Place) -> None:
    """Somebody else commits between our look at the head and our commit."""
    repo = place.to.removeprefix("hf://")

    def theirs() -> None:
        tree = list(place.server.repos[f"datasets/{repo}"].commits.values())[-1]
        place.server.commit(repo, {**tree, "NOTES.md": b"theirs"}, kind="datasets")

    place.fail(meanwhile=theirs)


def unauthorized(place: Place) -> None:
    place.fail({"hf": "/api/", "gs": "/upload", "s3": "PUT /"}[place.scheme], status=401, times=99)


def forbidden(place: Place) -> None:
    place.fail({"hf": "/preupload/", "gs": "/upload", "s3": "PUT /"}[place.scheme], status=403, times=99)


def unknown(place: Place) -> None:
    """Handled by `outcome`: another bucket, or an owner that the token does not know."""


def gone_and_back(place: Place) -> None:
    place.fail(meanwhile=place.server.down)
    place.after_sleeps[3] = place.server.up


def gone_for_good(place: Place) -> None:
    place.fail(meanwhile=place.server.down)


def client_killed(place: Place) -> None:
    """Handled by `outcome`: the process is killed while its last request is served."""


FAULTS: dict[str, Callable[[Place], None]] = {
    "503, three times": busy,
    "429 with Retry-After": told_to_wait,
    "connection dropped in an upload": dropped,
    "reply lost, the work done": lost_reply,
    "somebody else commits meanwhile": stale_parent,
    "401": unauthorized,
    "403": forbidden,
    "unknown bucket": unknown,
    "server gone, and back": gone_and_back,
    "server gone": gone_for_good,
    "client killed": client_killed,
}


def outcome(fault: str, place: Place, folder: Path) -> str:
    """What happened, in words of the table. What must never happen is an AssertionError."""
    if (FAULTS[fault] is stale_parent and place.scheme != "hf") or (FAULTS[fault] is unknown and place.scheme == "hf"):
        return "–"
    place.fresh(fault.replace(" ", "-").replace(",", "")[:30])
    before = len(place.server.requests)
    FAULTS[fault](place)
    out = folder.with_suffix(".json")
    out.unlink(missing_ok=True)
    if FAULTS[fault] is client_killed:
        first = killed(place, folder, out)
    else:
        first = attempt(place, folder, out, to=f"{place.scheme}://nowhere/x" if FAULTS[fault] is unknown else None)
    place.server.faults.clear()
    place.server.up()
    assert out.exists() == (first == "one publication"), "a record is there if and only if all is"
    assert place.commits() <= 1
    if first == "one publication":
        waits = [seconds for seconds in place.slept if seconds >= 3]
        return f"{first}, after the time asked for" if FAULTS[fault] is told_to_wait and waits else first
    seen = len(place.server.requests) - before
    again = attempt(place, folder, out)
    assert again == "one publication", again
    assert place.commits() == 1
    uploads = place.uploads()
    if FAULTS[fault] is client_killed:
        assert len(uploads) == len(set(uploads)), "something was sent twice"
    assert seen or FAULTS[fault] is unknown
    return f"{first}; a rerun finishes"


def attempt(place: Place, folder: Path, out: Path, to: str | None = None) -> str:
    """One run: its error in the table's words, or what is there after it."""
    try:
        record = place.publish(folder, out, to=to)
    except DistillError as error:
        return next((words for part, words in WORDS.items() if part in str(error)), f"error: {error}")
    found = place.files(record)
    assert {name: found[name] for name in WANTED} == WANTED
    return "one publication"


def killed(place: Place, folder: Path, out: Path) -> str:
    """The script in a process of its own, killed when its publication is about to become visible."""
    recipe: dict[str, Any] = {
        "run": "demo", "models": {"teacher": {"source": "t"}, "student": {"source": "s"}}, "stages": {},
        "prompts": {"source": "p"}, "publish": {"targets": {"here": {"to": place.to}}},
    }  # fmt: skip
    command = [sys.executable, str(ROOT / "scripts/publish_to.py"), "--folder", str(folder), "--where", "here",
               "--recipe", Recipe.model_validate(recipe).model_dump_json(), "--sources", "{}",
               "--out", str(out)]  # fmt: skip
    offline = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    process = subprocess.Popen(command, env=os.environ | offline, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    place.fail(meanwhile=lambda: (process.kill(), process.wait()), dropped=True)
    _, said = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, said.decode()
    return "nothing to see" if place.commits() == 0 else "one publication to see"


def write(folder: Path) -> Path:
    """What is published."""
    for name, content in WANTED.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def main() -> None:
    found: dict[str, list[str]] = {fault: [] for fault in FAULTS}
    with tempfile.TemporaryDirectory() as work:
        folder = write(Path(work) / "dataset")
        for start in PLACES.values():
            with start() as server, at_hand(server):
                for fault in FAULTS:
                    found[fault].append(outcome(fault, server, folder))
    print("| fault | Hub | GCS | S3 |\n|---|---|---|---|")
    print("\n".join(f"| {fault} | {' | '.join(outcomes)} |" for fault, outcomes in found.items()))


if __name__ == "__main__":
    main()
