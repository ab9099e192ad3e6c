"""A job leaves with the process that started it."""

import os
import signal
import subprocess
import sys

JOB = "from distill.parent import leave_with_parent; import time; leave_with_parent(); print('up', flush=True); "


def test_a_job_ends_when_its_workflow_is_killed() -> None:
    with subprocess.Popen(["sleep", "60"]) as workflow:
        job = subprocess.Popen(
            [sys.executable, "-c", JOB + "time.sleep(60)"],
            env=os.environ | {"DISTILL_PARENT": str(workflow.pid)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert job.stdout.readline() == "up\n"
        assert job.poll() is None
        workflow.kill()
    assert job.wait(timeout=10) == -signal.SIGTERM
    job.stdout.close()


def test_a_job_that_a_person_started_stays() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "DISTILL_PARENT"}
    command = [sys.executable, "-c", JOB + "time.sleep(1.5)"]
    assert subprocess.run(command, env=environment, check=False, capture_output=True).returncode == 0
