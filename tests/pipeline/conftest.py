"""One finished run, and copies of it to change."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from project import Project


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose run is complete. Not to be changed: take `project`."""
    project = Project.make(tmp_path_factory.mktemp("pipeline") / "finished")
    project.run()
    return project


@pytest.fixture
def project(finished: Project, request: pytest.FixtureRequest) -> Project:
    """The finished project again, to be changed."""
    return finished.copy(finished.folder.parent / request.node.name.replace("/", "-"))
