"""Which code a rule runs: the script and the library modules it reaches, as one digest.

Snakemake sees neither an edited imported module nor the difference between a comment and a statement. The digest is
taken over the syntax tree without docstrings, and goes into the rule's params: editing a module re-runs the rules that
reach it and no others, and editing a comment or touching a file re-runs nothing.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

PACKAGES = ("conceptome", "conceptome_kernels")
KERNEL_SOURCES = frozenset({".c", ".cc", ".cpp", ".cu", ".cuh", ".h", ".hpp"})

# A dotted name that starts with one of our packages, optionally with ":function", as registries name their entries.
_DISPATCH = re.compile(rf"^({'|'.join(PACKAGES)})((?:\.[A-Za-z_]\w*)+)(?::\w+)?$")
# The beginning of an f-string such as f"conceptome.models.{name}": everything in that package may be meant.
_PREFIX = re.compile(rf"^({'|'.join(PACKAGES)})((?:\.[A-Za-z_]\w*)*)\.$")


def repository() -> Path:
    """Give the root of the checkout that this package lies in (the folder that holds scripts/ and kernels/)."""
    return Path(__file__).resolve().parents[3]


def closure(script: str | Path, *, without: Iterable[str] = (), root: str | Path | None = None) -> dict:
    """Digest and list the code that `script` can reach.

    Counted as reached: imports anywhere in a module (inside functions too), the packages on the way, string constants
    that name an existing module ("conceptome.models.scvi:embed"), and for an f-string that begins with a package name
    (f"conceptome.models.{name}") every module of that package. Other computed imports are not seen.
    When `conceptome_kernels` is reached, the C and C++ sources below kernels/ count too.

    Parameters
    ----------
    script
        Path of the script, absolute or relative to `root`.
    without
        Modules that are left out with all that only they reach, for a rule whose parameters decide which of several
        registered modules runs (e.g. the other adapters).
    root
        Folder that holds scripts/ and kernels/; None: the checkout that this package lies in.

    Returns
    -------
    {"digest": hex sha256, "files": paths relative to `root`, sorted}

    Raises
    ------
    FileNotFoundError
        The script, or a module named in `without`, does not exist.
    SyntaxError
        A reached file is not valid Python.
    """
    base = Path(root).resolve() if root is not None else repository()
    return _closure(base / script, tuple(sorted(set(without))), base)


@cache
def _closure(script: Path, without: tuple[str, ...], root: Path) -> dict:
    for name in without:
        if _module(name, root) is None:
            raise FileNotFoundError(f"closure of {script.name}: module {name} to leave out does not exist")
    excluded = set(without)
    digests: dict[Path, str] = {}
    waiting = [script]
    while waiting:
        file = waiting.pop()
        if file in digests:
            continue
        code, names = _scan(file, root)
        digests[file] = code
        for name in names:
            if any(name == other or name.startswith(f"{other}.") for other in excluded):
                continue
            waiting.extend(_module_files(name, root))
    if any(_relative(file, root).startswith("kernels/") for file in digests):
        for file in sorted((root / "kernels").rglob("*")):
            if file.suffix in KERNEL_SOURCES:
                digests[file] = hashlib.sha256(file.read_bytes()).hexdigest()
    listing = sorted((_relative(file, root), code) for file, code in digests.items())
    whole = hashlib.sha256("".join(f"{path}\0{code}\n" for path, code in listing).encode())
    return {"digest": whole.hexdigest(), "files": [path for path, _ in listing]}


def _relative(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name


@cache
def _module(name: str, root: Path) -> Path | None:
    """Give the file of one of our modules or packages, None where there is none of that name."""
    parts = name.split(".")
    for folder in (root / "scripts", root / "kernels"):
        path = folder.joinpath(*parts)
        for candidate in (path.with_name(f"{path.name}.py"), path / "__init__.py"):
            if candidate.is_file():
                return candidate
    return None


def _module_files(name: str, root: Path) -> Iterator[Path]:
    """Give the module's file and the __init__ of every package on the way: importing it runs them all."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        file = _module(".".join(parts[:end]), root)
        if file is not None:
            yield file


@cache
def _scan(file: Path, root: Path) -> tuple[str, tuple[str, ...]]:
    """Digest one file's code and name the modules of ours that it reaches."""
    tree = ast.parse(file.read_bytes(), filename=str(file))
    names: set[str] = set()
    package = _package(file, root)
    for node in ast.walk(tree):
        _strip_docstring(node)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, package)
            names.add(base)
            # `from package import name`: name may be a module, or something the package defines.
            names.update(f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if match := _DISPATCH.match(node.value):
                names.add(match[1] + match[2])
            elif match := _PREFIX.match(node.value):
                names.update(_members(match[1] + match[2], root))
    ours = sorted(name for name in names if name.split(".")[0] in PACKAGES and _module_or_parent(name, root))
    # unparse, unlike dump, spells the same tree alike under every version of Python.
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest(), tuple(ours)


def _module_or_parent(name: str, root: Path) -> bool:
    return any(True for _ in _module_files(name, root))


def _members(package: str, root: Path) -> Iterator[str]:
    init = _module(package, root)
    if init is not None and init.name == "__init__.py":
        yield from (f"{package}.{file.stem}" for file in init.parent.glob("*.py") if file.stem != "__init__")


def _package(file: Path, root: Path) -> str:
    for folder in (root / "scripts", root / "kernels"):
        if file.is_relative_to(folder):
            return ".".join(file.relative_to(folder).parent.parts)
    return ""


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    base = parts[: len(parts) - node.level + 1]
    return ".".join([*base, *([node.module] if node.module else [])])


def _strip_docstring(node: ast.AST) -> None:
    if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return
    first = node.body[0] if node.body else None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        node.body = node.body[1:] or [ast.Pass()]
