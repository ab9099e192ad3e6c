"""What a stage is made of: one digest over a script and all that it imports from the project.

A rule carries the digest in its params, so that an edit to the library reruns the stages that use it, and
only those. Comments, docstrings and layout do not count, nor does a module that nothing imports. The digest
is the same in every process, for every Python version and wherever the project lies on disk.
"""

import ast
import hashlib
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from distill.errors import DistillError
from distill.files import file_digest, read_json, write_json

PACKAGE = Path(__file__).resolve().parent

# A module, or a package that is taken for one. Its classes count one by one, those that the closure names: a new
# training key must not regenerate 400,000 completions. Every other module counts as a whole.
BY_NAME = "distill.config"


def digests(scripts: Iterable[Path], memory: Path, package: Path = PACKAGE) -> dict[str, str]:
    """`digest` of each script, by its name. The file `memory` has them for as long as no source changes.

    To go through all syntax trees takes a second or two, to read the files that they are made of some milliseconds.
    """
    scripts = sorted(scripts)
    files = {f"script {script.name}": script for script in scripts}
    files |= {str(file.relative_to(package)): file for file in package.rglob("*") if "__pycache__" not in file.parts}
    total = hashlib.sha256()
    for name, file in sorted(files.items()):
        if file.is_file():
            total.update(f"{name}\0{file_digest(file)}\0".encode())
    with suppress(DistillError):
        known = read_json(memory)
        if known.get("sources") == total.hexdigest():
            return known["digests"]
    found = {script.stem: digest(script, package) for script in scripts}
    write_json(memory, {"sources": total.hexdigest(), "digests": found})
    return found


@cache
def digest(script: Path, package: Path = PACKAGE) -> str:
    """Sixteen hex digits of `script` and its import closure in the package that lies in folder `package`."""
    modules = dict(sorted(closure(Path(script), package).items()))
    by_name = {name: module for name, module in modules.items() if f"{name}.".startswith(f"{BY_NAME}.")}
    texts = {name: module.text for name, module in modules.items() if name not in by_name}
    if by_name:
        texts[BY_NAME] = _definitions(by_name.values(), _asked(modules.values(), by_name))
    total = hashlib.sha256()
    for name, text in sorted(texts.items()):
        total.update(f"{name}\0{text}\0".encode())
    for module in modules.values():
        for data in module.data_files:
            total.update(f"{data.name}\0".encode() + data.read_bytes())
    return total.hexdigest()[:16]


def closure(script: Path, package: Path = PACKAGE) -> dict[str, "Module"]:
    """`script`, named `__main__`, and the package's modules that it imports, directly or through others.

    An import inside a function counts as one at the top, and one of `a.b.c` as one of `a` and `a.b` too.
    """
    found = {"__main__": _read("__main__", script)}
    queue = [*found["__main__"].imports]
    while queue:
        name = queue.pop()
        if name not in found and (file := _file(name, package)):
            found[name] = _read(name, file)
            queue += found[name].imports
    return found


@cache
def _file(name: str, package: Path) -> Path | None:
    """The source of a module of the package; None for any other."""
    if name.split(".")[0] != package.name:
        return None
    base = package.parent.joinpath(*name.split("."))
    files = [base / "__init__.py", base.with_name(f"{base.name}.py")]
    return next((file for file in files if file.is_file()), None)


@dataclass(frozen=True)
class Module:
    """A source file without what does not count."""

    name: str
    file: Path
    tree: ast.Module
    importing: tuple[ast.Import | ast.ImportFrom, ...]
    strings: frozenset[str]

    @cached_property
    def text(self) -> str:
        return canonical(self.tree)

    @cached_property
    def statements(self) -> list[tuple[str | None, str, set[str]]]:
        """Of each statement at the top, imports apart: the name it defines, its text, the names it uses."""
        return [
            (_defines(part), canonical(part), {node.id for node in ast.walk(part) if isinstance(node, ast.Name)})
            for part in self.tree.body
            if not isinstance(part, ast.Import | ast.ImportFrom)
        ]

    @cached_property
    def renamed(self) -> dict[str, str]:
        """{name here: name there} of what is imported `as` something else."""
        return {alias.asname: alias.name for node in self.importing for alias in node.names if alias.asname}

    @cached_property
    def imports(self) -> set[str]:
        """Dotted names that the module may import, with the packages around them."""
        names = set()
        for node in self.importing:
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            else:
                base = self._absolute(node)
                names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}  # a member may be a module
        return {".".join(parts[:end]) for parts in map(_parts, names) for end in range(1, len(parts) + 1)}

    @cached_property
    def data_files(self) -> list[Path]:
        """Files beside the module that it names in a string, such as a template, and those that they name."""
        beside = [file for file in sorted(self.file.parent.iterdir()) if file.is_file() and file.suffix != ".py"]
        found = [file for file in beside if file.name in self.strings]
        for file in found:  # grows while it is walked
            text = file.read_text(encoding="utf-8", errors="replace")
            found += [other for other in beside if other.name in text and other not in found]
        return sorted(found)

    def takes_from(self, modules: Collection[str]) -> set[str]:
        """Names that this module takes out of others; `*` where it imports one of them as a whole."""
        names = set()
        for node in self.importing:
            base = self._absolute(node) if isinstance(node, ast.ImportFrom) else None
            for alias in node.names:
                if (f"{base}.{alias.name}" if base else alias.name) in modules:
                    names.add("*")
                elif base in modules:
                    names.add(alias.name)
        return names

    def _absolute(self, node: ast.ImportFrom) -> str:
        """The module of `from module import ...`, dots resolved."""
        package = _parts(self.name) if self.file.name == "__init__.py" else _parts(self.name)[:-1]
        above = package[: len(package) - node.level + 1] if node.level else []
        return ".".join([*above, *_parts(node.module or "")])


@cache
def _read(name: str, file: Path) -> Module:
    tree = ast.parse(file.read_bytes(), filename=str(file))
    importing, strings = [], set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [statement for statement in node.body if not _is_docstring(statement)]
        elif isinstance(node, ast.Import | ast.ImportFrom):
            importing.append(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            strings.add(node.value)
    return Module(name, file, tree, tuple(importing), frozenset(strings))


def canonical(node: object) -> str:
    """A syntax tree as text: without positions, and without empty fields, in which Python versions differ."""
    if isinstance(node, list):
        return f"[{','.join(map(canonical, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [(name, value) for name, value in ast.iter_fields(node) if value is not None and value != []]
    return f"{type(node).__name__}({','.join(f'{name}={canonical(value)}' for name, value in fields)})"


def _is_docstring(statement: ast.stmt) -> bool:
    """A string that stands alone: a docstring, or an attribute's."""
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def _parts(name: str) -> list[str]:
    return name.split(".") if name else []


def _asked(modules: Iterable[Module], by_name: Collection[str]) -> set[str]:
    """Names that modules take out of those `by_name`; `*` where anybody, these too, imports one of them as a whole.

    What these take out of each other by name counts only once it is used: `_definitions` follows it.
    """
    return {
        name for module in modules for name in module.takes_from(by_name) if name == "*" or module.name not in by_name
    }


def _definitions(modules: Collection[Module], asked: set[str]) -> str:
    """The text of modules reduced to the definitions of the `asked` names and all that those use in turn.

    A name is looked up in all of them, whatever module it is imported from; an import statement does not count by
    itself, as what it leads to is in the closure. Statements that define no single name (`if`) stay; asked for `*`,
    all stay.
    """
    if "*" in asked:
        return "".join(module.text for module in modules)
    statements = [statement for module in modules for statement in module.statements]
    renamed = [pair for module in modules for pair in module.renamed.items()]
    queue, reached = [*asked], set()
    while queue:
        name = queue.pop()
        if name not in reached:
            reached.add(name)
            queue += [used for defined, _, names in statements if defined == name for used in names]
            queue += [there for here, there in renamed if here == name]
    kept = [text for name, text, _ in statements if name is None or name in reached]
    return f"Module(body=[{','.join(kept)}])" if kept else "Module()"


def _defines(statement: ast.stmt) -> str | None:
    match statement:
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
            return name
        case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
            return name
    return None
