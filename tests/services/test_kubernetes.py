"""profiles/kubernetes, on a stand-in for a cluster (kubernetes/cluster.py): the plugin is real, and so is the bucket's
protocol. No file passes from job to job but through the bucket."""

import json
import logging
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from pipeline.project import Project

from distill.files import read_json, read_jsonl

sys.path.insert(0, str(Path(__file__).parent / "kubernetes"))
from cluster import Cluster, Pod

pytestmark = pytest.mark.kubernetes

SECRET = "sEcReT-of-the-bucket"
STEPS = 20_000  # a checkpoint is sent at most 5 s after it is there: the trainer must live for long enough
SMALL = {"memory_gb": 1, "minutes": 10}
RECIPE: dict[str, Any] = {
    "prompts__num_batches": 2,
    "prompts__batch_size": 7,
    "stages__sft__steps": STEPS,
    "stages__sft__checkpoint_every": 2_000,
    "stages__sft__keep": 10,  # one that is replaced before it is sent has no copy
    "resources": {
        "generate": SMALL | {"accelerators": 1, "cpus": 2}, "train": SMALL, "evaluate": SMALL, "other": SMALL,
    },
    "storage": {"work": "s3://distill/kept"},
}  # fmt: skip
TIMED = ("seconds", "seconds_left", "tokens_per_second")


@dataclass(frozen=True)
class Finished:
    """A recipe that went through pods, of which the trainer's was killed. Not to be changed: its `-n` may be asked."""

    project: Project
    cluster: Cluster
    output: str
    fetched: Path
    bucket: Any

    @staticmethod
    def flags(*more: str) -> list[str]:
        names = ["AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"]
        return [
            "--profile", "profiles/kubernetes", "--container-image", "registry.example/distill",
            "--default-storage-prefix", "s3://distill/here", "--kubernetes-namespace", Cluster.namespace,
            "--envvars", *names, "--seconds-between-status-checks", "1", *more,
        ]  # fmt: skip


@pytest.fixture(scope="module")
def bucket() -> Iterator[Any]:
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    environment = {
        "AWS_ENDPOINT_URL": "http://{}:{}".format(*server.get_host_and_port()), "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    with patch.dict("os.environ", environment):
        made = boto3.resource("s3").Bucket("distill")
        made.create()
        yield made
    server.stop()


@pytest.fixture(scope="module")
def finished(bucket: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    if not find_spec("snakemake_executor_plugin_kubernetes"):
        pytest.fail("the plugins are not installed: make test-kubernetes")
    folder = tmp_path_factory.mktemp("kubernetes")
    project = Project.make(folder / "project")
    project.recipe(**RECIPE)
    (project.folder / ".gitignore").write_text("results\n.snakemake\n__pycache__\n")
    subprocess.run("git init --quiet && git add .", shell=True, cwd=project.folder, check=True)
    image = {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"), "XLA_FLAGS": ""}  # its programs, to save time
    capacity = {"cpu": 4.0, "memory": 8e9, "nvidia.com/gpu": 1.0}
    with Cluster(folder / "pods", capacity, image) as cluster, patch.dict(
        "os.environ", {"KUBECONFIG": str(cluster.kubeconfig)}
    ):  # fmt: skip
        process = project.start(*Finished.flags())
        try:
            kill_when_kept(cluster, bucket, process)
            output, _ = process.communicate(timeout=1800)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        said = "\n".join(cluster.words(pod)[-3000:] for pod in cluster.all if pod.exit_code)
        assert process.returncode == 0, f"{output}\n{said}"
        yield Finished(project, cluster, output, fetch(bucket, "here/results", folder / "fetched"), bucket)


def kill_when_kept(cluster: Cluster, bucket: Any, process: subprocess.Popen) -> None:
    """Kill the trainer's pod once the bucket has a checkpoint."""
    deadline = time.monotonic() + 1800  # a start of a pod takes 10 s of two processors, minutes where they are busy
    while True:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.2)
        if pod := cluster.running("train"):
            found = bucket.objects.filter(Prefix="kept/tiny/students/sft/steps/manifest.json")
            files = [name for manifest in found for name in json.loads(manifest.get()["Body"].read())["files"]]
            if any(re.match(r"steps/\d+/", name) for name in files):  # the metrics may be there before
                cluster.kill(pod)
                return


def fetch(bucket: Any, prefix: str, folder: Path) -> Path:
    """What `aws s3 sync` would bring."""
    for found in bucket.objects.filter(Prefix=f"{prefix}/"):
        target = folder / found.key.removeprefix(f"{prefix}/")
        target.parent.mkdir(parents=True, exist_ok=True)
        bucket.download_file(found.key, str(target))
    return folder


def pods(finished: Finished, rule: str) -> list[Pod]:
    return [pod for pod in finished.cluster.all if pod.rules == [rule]]


@pytest.fixture(scope="module")
def alone(finished: Finished) -> Path:
    """The run's folder of the same recipe on one machine."""
    project = Project(finished.project.folder.parent / "alone")
    shutil.copytree(finished.project.folder, project.folder, ignore=shutil.ignore_patterns(".snakemake", ".git"))
    project.recipe(**{name: value for name, value in RECIPE.items() if name not in ("resources", "storage")})
    outcome = project.snakemake(seconds=1200)
    assert outcome.code == 0, outcome.output
    return project.run_folder


def test_what_comes_out_is_what_one_machine_makes(finished: Finished, alone: Path) -> None:
    timed = ("logs", "benchmarks", "work", "report.html", "recipe.yaml")
    weights = re.compile(r"students/.*/params/weights/|final\.json|metrics\.jsonl|steps\.lock|\.snakemake_timestamp")

    def files(folder: Path) -> dict[str, bytes]:
        found = {str(f.relative_to(folder)): f for f in sorted(folder.rglob("*")) if f.is_file()}
        return {
            name: f.read_bytes() for name, f in found.items() if not name.startswith(timed) and not weights.search(name)
        }

    run = finished.fetched / "tiny"
    there, here = files(run), files(alone)
    assert there.keys() == here.keys()
    assert [name for name in here if here[name] != there[name]] == []
    assert {"dataset/data/train-00000-of-00001.parquet", "export/sft/model.safetensors"} <= here.keys()
    final = [read_json(f / "students/sft/final.json") | {"seconds": 0} for f in (run, alone)]
    assert final[0] == final[1]  # the digest of all weights among it
    rows = [[{k: v for k, v in row.items() if k not in TIMED} for row in read_jsonl(f / "students/sft/metrics.jsonl")]
            for f in (run, alone)]  # fmt: skip
    assert rows[0] == rows[1]
    page = (run / "report.html").read_text()
    assert "results/tiny/students/sft" in page
    assert ".snakemake" not in page


def test_a_killed_trainer_goes_on_in_another_pod(finished: Finished) -> None:
    first, second = pods(finished, "train")
    assert (first.exit_code, second.exit_code) == (137, 0)
    said = finished.cluster.words(second)
    assert "goes on from s3://distill/kept/tiny/students/sft/steps" in said
    steps = [int(step) for step in re.findall(rf"(\d+)/{STEPS}", said)]
    assert min(steps) >= 2_000, "it started over"
    assert [found.key for found in finished.bucket.objects.filter(Prefix="kept/tiny/students")] == []
    journals = [found.key for found in finished.bucket.objects.filter(Prefix="kept/tiny/samples")]
    assert len([key for key in journals if key.endswith("manifest.json")]) == 2


def test_pods_ask_for_what_the_recipe_says(finished: Finished) -> None:
    for rule, asked in {
        "generate": {"cpu": 1.9, "memory": 1e9, "nvidia.com/gpu": 1},
        "train": {"cpu": 0.95, "memory": 1e9},
    }.items():
        for pod in pods(finished, rule):
            wanted = {name: pod.asked[name] for name in asked}
            assert wanted == pytest.approx(asked)
            assert ("nvidia.com/gpu" in pod.asked) == (rule == "generate")
    (container,) = pods(finished, "generate")[0].body["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry.example/distill"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_secrets_go_by_name(finished: Finished) -> None:
    bodies = json.dumps([pod.body for pod in finished.cluster.all])
    assert "AWS_SECRET_ACCESS_KEY" in bodies
    assert SECRET not in bodies
    assert SECRET not in finished.output
    assert finished.cluster.secrets == {}, "they were left in the cluster"
    for found in finished.bucket.objects.all():
        assert SECRET.encode() not in found.get()["Body"].read(), found.key


def test_nothing_runs_twice_and_a_changed_prompt_is_noticed(finished: Finished) -> None:
    outcome = finished.project.snakemake(*Finished.flags("--dry-run"), cores="", seconds=600)
    assert (outcome.code, outcome.jobs) == (0, []), outcome.output
    prompts = finished.project.folder / "prompts.jsonl"
    before = prompts.read_text()
    try:
        finished.project.edit("prompts.jsonl", "spell f a", "spell f b")
        outcome = finished.project.snakemake(*Finished.flags("--dry-run"), cores="", seconds=600)
        assert "read and tokenize the prompts" in outcome.jobs, outcome.output
    finally:
        prompts.write_text(before)


def test_a_failing_pod_says_why(finished: Finished) -> None:
    project = finished.project
    try:
        project.recipe(**RECIPE | {"run": "short", "generation__max_prefill_length": 2, "prompts__overlong": "fail"})
        target = "results/short/prompts/index.json"
        outcome = project.snakemake(*Finished.flags("--retries", "0", target), cores="", seconds=600)
    finally:
        project.recipe(**RECIPE)
    assert outcome.code == 1
    assert re.search(r"^error: .*max_prefill_length is 2", outcome.output, re.MULTILINE), outcome.output
