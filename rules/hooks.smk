"""Before and after a run: stale locks, the recipe as last run, what came out, what went wrong."""

import fcntl
import logging
import time

import yaml

from distill.files import replacing
from distill.serving.shared import leave_servers

STARTED = time.time()


def break_stale_locks():
    """A Snakemake that was killed leaves its locks; remove them when no other one is alive in this folder.

    Every Snakemake holds a shared lock of the operating system, which goes with its process, on one file. Who
    gets it exclusively is alone, so that all locks of Snakemake's own are of the dead.
    """
    folder = Path(".snakemake")
    folder.mkdir(exist_ok=True)
    alive = (folder / "alive").open("w+")  # a shared lock is for reading
    try:
        fcntl.lockf(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
        stale = list((folder / "locks").glob("*.lock"))
        for lock in stale:
            lock.unlink(missing_ok=True)
        if stale:
            print("The run before was killed. Its locks are removed; what it left unfinished is made.", file=sys.stderr)
    except OSError:
        pass  # another one is alive, or the disk knows no locks
    try:
        fcntl.lockf(alive, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        pass
    return alive  # the lock lasts as long as the open file


if workflow.is_main_process:
    ALIVE = break_stale_locks()


LOCKED = (
    "error: another snakemake is making the same files in this folder: wait for it, or stop it. Locks of a run that "
    "was killed are removed by the next one; where the disk knows no locks of the operating system (some network "
    "disks do not), do it by hand once none is running: snakemake --unlock"
)


class Terse(logging.Filter):
    """Leaves out what Snakemake says about itself, and remembers the logs of the jobs that failed.

    The whole is in .snakemake/log, and on the terminal with --verbose.
    """

    chatter = (
        "Assuming unrestricted shared filesystem",
        "Using shell",
        "Rules claiming more threads",
        "Provided resources",
        "DAG of jobs will be updated",
        "Updating checkpoint dependencies",
        "Select jobs to execute",
        "Execute ",
        "RuleException",  # the job's own error is said, and again by print_errors
        "WorkflowError:\nAt least one job",
        "--keep-incomplete mode",
    )

    def __init__(self):
        super().__init__()
        self.failed = []

    def filter(self, record):
        event = getattr(getattr(record, "event", None), "name", "")
        if str(record.msg).startswith("LockException"):
            record.msg, record.args = LOCKED, ()
        if event == "JOB_ERROR":
            self.failed += record.log
        if workflow.output_settings.verbose:
            return True
        return event != "JOB_FINISHED" and not str(record.msg).startswith(self.chatter)


TERSE = Terse()
for handler in logging.getLogger("snakemake.logging").handlers:
    handler.addFilter(TERSE)


def keep_recipe():
    """Write the recipe as last run beside its results; the same one leaves the file alone."""
    given = RECIPE.model_dump(mode="json", exclude_unset=True)
    text = yaml.safe_dump(given, sort_keys=False, allow_unicode=True)
    kept = RECIPE.folder / "recipe.yaml"
    if not kept.exists() or kept.read_text(encoding="utf-8") != text:
        with replacing(kept) as tmp:
            tmp.write_text(text, encoding="utf-8")


def print_outcome():
    """Where the page is that was just written, and the scores on it."""
    if STORED:
        print(f"\nDone: {storage_prefix()}/{RUN}", file=sys.stderr)
        return
    page, summary = RECIPE.folder / "report.html", RECIPE.folder / "summary.json"
    if not page.exists() or page.stat().st_mtime < STARTED:
        return
    print(f"\nDone: {page}", file=sys.stderr)
    if summary.exists():
        for name, score in read_json(summary)["models"].items():
            print(score_line(name, score), file=sys.stderr)


def score_line(name, score):
    parts = []
    if score["exact_match"] is not None:
        parts.append(f"exact match {score['exact_match']:7.1%}")
    if score["nll"] is not None:
        parts.append(f"NLL {score['nll']:.3f}")
    return f"  {name:16} {'   '.join(parts)}"


def print_errors():
    """Say at the end, where one looks, why jobs failed: the `error:` line of each, or else its last one."""
    logs = dict.fromkeys(TERSE.failed)
    for log in [log for log in logs if Path(log).exists()] or logs:  # of a pod's there is a copy, what it said is here
        text = Path(log).read_text(encoding="utf-8", errors="replace") if Path(log).exists() else ""
        lines = re.findall(r"\berror: .*", text) or text.split("\n")[-2:-1] or ["it left no word"]
        print(f"\n{lines[-1]}\n  (the whole: {log})", file=sys.stderr)
    print("\nWhat was finished is kept: the same command goes on from here.", file=sys.stderr)
