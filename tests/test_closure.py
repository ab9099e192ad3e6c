"""The digest of a stage's code moves with what the stage runs, and with nothing else."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from distill import closure

FILES = {
    "script.py": "from pkg.work import run\nrun()\n",
    "pkg/__init__.py": "",
    "pkg/work/__init__.py": "from .inner import run\n",
    "pkg/work/inner.py": '''
        """Says what it does."""
        from ..deep import leaf
        from pkg.config import Generation

        RATE = 3  # a comment


        def run():
            """Do it."""
            from pkg import late

            return leaf.value + late.value, "page.html"
        ''',
    "pkg/work/page.html": "{% include 'part.html' %}",
    "pkg/work/part.html": "<p>",
    "pkg/work/notes.md": "nobody reads this",
    "pkg/deep/__init__.py": "",
    "pkg/deep/leaf.py": "value = 1\n",
    "pkg/late.py": "value = 2\n",
    "pkg/unrelated.py": "value = 3\n",
    "pkg/config.py": """
        class Settings:
            pass


        LIMIT = 5


        class Generation(Settings):
            limit = LIMIT


        class Stage(Settings):
            rate = 1
        """,
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(closure, "BY_NAME", "pkg.config")
    return write(tmp_path / "project")


def write(folder: Path, files: dict[str, str] = FILES) -> Path:
    for name, text in files.items():
        lines = text.split("\n")
        indent = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("\n".join(line[indent:] for line in lines))
    return folder


def digest(folder: Path) -> str:
    closure.digest.cache_clear()
    closure._read.cache_clear()
    return closure.digest(folder / "script.py", folder / "pkg")


def replaced(folder: Path, name: str, old: str, new: str) -> str:
    """The digest with `old` in a file replaced by `new`."""
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))
    return digest(folder)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("pkg/work/inner.py", "  # a comment", ""),
        ("pkg/work/inner.py", "Says what it does.", "Says it otherwise."),
        ("pkg/work/inner.py", '    """Do it."""\n', ""),
        ("pkg/work/inner.py", "leaf.value + late.value", "(leaf.value\n            + late.value)"),
        ("pkg/unrelated.py", "3", "4"),
        ("pkg/work/notes.md", "nobody", "somebody"),
        ("pkg/config.py", "rate = 1", "rate = 2"),  # a setting of another stage
    ],
)
def test_what_does_not_count(project: Path, name: str, old: str, new: str) -> None:
    before = digest(project)
    assert replaced(project, name, old, new) == before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("script.py", "run()\n", "run(1)\n"),
        ("pkg/work/inner.py", "RATE = 3", "RATE = 4"),
        ("pkg/work/__init__.py", "import run", "import run, RATE"),
        ("pkg/__init__.py", "", "import os\n"),  # a package's own code runs too
        ("pkg/deep/leaf.py", "1", "1.0"),  # through a relative import
        ("pkg/late.py", "2", "3"),  # imported inside a function
        ("pkg/work/page.html", "include", "import"),  # named in a string
        ("pkg/work/part.html", "<p>", "<b>"),  # named in a file that is named in a string
        ("pkg/config.py", "LIMIT = 5", "LIMIT = 6"),  # used by a class that is used
        ("pkg/config.py", "pass", "frozen = True"),  # its base
    ],
)
def test_what_counts(project: Path, name: str, old: str, new: str) -> None:
    before = digest(project)
    assert replaced(project, name, old, new) != before


def test_a_module_taken_whole_counts_whole(project: Path) -> None:
    replaced(project, "pkg/work/inner.py", "from pkg.config import Generation", "from pkg import config")
    before = digest(project)
    assert replaced(project, "pkg/config.py", "rate = 1", "rate = 2") != before


PACKAGE = {
    "pkg/config/__init__.py": """
        from .generation import Generation
        from .stages import Stage

        __all__ = ["Generation", "Stage"]
        """,
    "pkg/config/settings.py": """
        LIMIT = 5


        class Settings:
            pass
        """,
    "pkg/config/sampling.py": """
        class Sampling:
            temperature = 1
        """,
    "pkg/config/generation.py": """
        from .sampling import Sampling
        from .settings import LIMIT
        from .settings import Settings as Base


        class Generation(Base):
            limit = LIMIT
            sampling = Sampling()
        """,
    "pkg/config/stages.py": """
        from .generation import Generation
        from .settings import Settings


        class Stage(Settings):
            rate = 1
            generation = Generation()
        """,
    "pkg/config/reading.py": "PATH = 1\n",
}
ASKED = "from pkg.config import Generation"


@pytest.fixture
def packaged(project: Path) -> Path:
    """The project, whose settings are several modules."""
    (project / "pkg/config.py").unlink()
    return write(project, PACKAGE)


@pytest.mark.parametrize("asked", [ASKED, "from pkg.config.generation import Generation"])
@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("stages", "rate = 1", "rate = 1\n    other = 2"),  # a new key of a class that the stage does not use
        ("stages", "class Stage", "class Other:\n    pass\n\n\nclass Stage"),
        ("stages", "import Settings", "import LIMIT, Settings"),
        ("__init__", "[", "[*(), "),
        ("__init__", "from .stages", "from .reading import PATH\nfrom .stages"),  # a module that nobody asks for
    ],
)
def test_settings_of_another_module_do_not_count(packaged: Path, asked: str, name: str, old: str, new: str) -> None:
    replaced(packaged, "pkg/work/inner.py", ASKED, asked)
    before = digest(packaged)
    assert replaced(packaged, f"pkg/config/{name}.py", old, new) == before


@pytest.mark.parametrize("asked", [ASKED, "from pkg.config.generation import Generation"])
@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("generation", "limit = LIMIT", "limit = LIMIT + 1"),
        ("sampling", "temperature = 1", "temperature = 2"),  # used by a class that is used
        ("settings", "pass", "frozen = True"),  # a base that is imported under another name
        ("settings", "LIMIT = 5", "LIMIT = 6"),
    ],
)
def test_settings_count_through_modules(packaged: Path, asked: str, name: str, old: str, new: str) -> None:
    replaced(packaged, "pkg/work/inner.py", ASKED, asked)
    before = digest(packaged)
    assert replaced(packaged, f"pkg/config/{name}.py", old, new) != before


def test_an_edit_of_a_class_reaches_those_that_use_it_through_a_third(packaged: Path) -> None:
    """Stage uses Generation, which uses Sampling; that knows of neither."""
    replaced(packaged, "pkg/work/inner.py", ASKED, "from pkg.config import Stage")
    before = digest(packaged)
    assert replaced(packaged, "pkg/config/sampling.py", "temperature = 1", "temperature = 2") != before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("work/inner.py", ASKED, "from pkg.config import stages"),
        ("work/inner.py", ASKED, "from pkg import config"),
        ("work/inner.py", ASKED, "import pkg.config.generation"),
        (
            "config/generation.py",
            "from .sampling import Sampling",
            "from . import sampling\n\nSampling = sampling.Sampling",
        ),
    ],
)
def test_settings_count_whole_where_a_module_of_theirs_is_taken_whole(
    packaged: Path, name: str, old: str, new: str
) -> None:
    before = replaced(packaged, f"pkg/{name}", old, new)
    assert replaced(packaged, "pkg/config/stages.py", "rate = 1", "rate = 2") != before


def test_place_and_process_do_not_count(project: Path, tmp_path: Path) -> None:
    elsewhere = shutil.copytree(project, tmp_path / "a place with another name")
    assert digest(elsewhere) == digest(project)
    command = (
        "import sys; from pathlib import Path; from distill import closure; closure.BY_NAME = 'pkg.config'; "
        "print(closure.digest(Path(sys.argv[1], 'script.py'), Path(sys.argv[1], 'pkg')))"
    )
    told = subprocess.check_output([sys.executable, "-c", command, str(project)], text=True)
    assert told.strip() == digest(project)


def test_every_script_is_known_by_its_code(root: Path) -> None:
    """The real scripts: each has a digest of its own, and the heavy ones reach the models."""
    scripts = sorted((root / "scripts").glob("*.py"))
    assert len({closure.digest(script) for script in scripts}) == len(scripts)
    reached = closure.closure(root / "scripts/serve.py")
    assert {"distill.generation.engine", "distill.models.decoder", "distill.models"} <= reached.keys()
    assert "distill.models.decoder" not in closure.closure(root / "scripts/generate.py")
    assert "distill.training.loop" not in reached
    templates = closure.closure(root / "scripts/report.py")["distill.evaluation.report"].data_files
    assert {"report.html.j2", "style.html.j2"} <= {file.name for file in templates}


@pytest.mark.parametrize(
    ("name", "old", "new", "reruns"),
    [
        ("stages.py", "    clip_norm: float", "    clip_more: float = 1.0\n    clip_norm: float", {"train"}),
        ("generation.py", "    seed: int", "    seeding: int = 1\n    seed: int", {"generate"}),
    ],
)
def test_a_new_key_of_the_real_settings_reruns_the_scripts_that_use_it(
    root: Path, tmp_path: Path, name: str, old: str, new: str, reruns: set[str]
) -> None:
    package = shutil.copytree(root / "lib/distill", tmp_path / "distill")
    scripts = {name: root / f"scripts/{name}.py" for name in ("download", "generate", "train")}
    file = package / "config" / name
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new, 1))
    moved = {name for name, script in scripts.items() if closure.digest(script, package) != closure.digest(script)}
    assert moved == reruns


def test_digests_are_remembered_until_a_source_changes(project: Path, tmp_path: Path) -> None:
    scripts, memory = project / "scripts", tmp_path / "memory.json"
    scripts.mkdir()
    shutil.copy(project / "script.py", scripts / "one.py")

    def told() -> dict[str, str]:
        closure.digest.cache_clear()
        closure._read.cache_clear()
        return closure.digests(scripts.glob("*.py"), memory, project / "pkg")

    first = told()
    assert first == {"one": closure.digest(scripts / "one.py", project / "pkg")}
    memory.write_text(memory.read_text().replace(first["one"], "remembered"))
    assert told() == {"one": "remembered"}
    for name, old, new in (("pkg/deep/leaf.py", "1", "7"), ("pkg/work/part.html", "<p>", "<b>")):
        before = told()
        (project / name).write_text((project / name).read_text().replace(old, new))
        assert told() != before
    memory.write_text("broken")
    assert told() == {"one": closure.digest(scripts / "one.py", project / "pkg")}
