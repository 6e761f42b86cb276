"""Which code a rule runs: the script and the library modules it reaches, as one digest.

Snakemake sees neither an edited imported module nor the difference between a comment and a statement. The digest is
taken over the syntax tree without docstrings, and goes into the rule's params: editing a module re-runs the rules that
reach it and no others, and editing a comment or touching a file re-runs nothing.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

from conceptome.files import atomic_path, sha256_file

PACKAGES = ("conceptome", "conceptome_kernels")
KERNEL_SOURCES = frozenset({".c", ".cc", ".cpp", ".cu", ".cuh", ".h", ".hpp"})

# A dotted name that starts with one of our packages, optionally with ":function", as registries name their entries.
_DISPATCH = re.compile(rf"^({'|'.join(PACKAGES)})((?:\.[A-Za-z_]\w*)+)(?::\w+)?$")
# The beginning of an f-string such as f"conceptome.models.{name}": everything in that package may be meant.
_PREFIX = re.compile(rf"^({'|'.join(PACKAGES)})((?:\.[A-Za-z_]\w*)*)\.$")


@cache
def repository() -> Path:
    """Give the root of the checkout that this package lies in (the folder that holds scripts/ and kernels/)."""
    return Path(__file__).resolve().parents[3]


def closure(script: str | Path, *, without: Iterable[str] = (), root: str | Path | None = None) -> dict:
    """Digest and list the code that `script` can reach.

    Counted as reached: imports anywhere in a module (inside functions too; not what only type checkers import, below
    `if TYPE_CHECKING`), the packages on the way, string constants that name an existing module
    ("conceptome.models.scvi:embed"), and for an f-string that begins with a package name (f"conceptome.models.{name}")
    every module of that package. Other computed imports are not seen.
    When `conceptome_kernels` is reached, the C and C++ sources below kernels/ count too.

    Parameters
    ----------
    script
        Path of the script, absolute or relative to `root`.
    without
        Modules that a string names but this rule does not run, since its parameters decide which of several registered
        modules does (e.g. the other adapters). A module that a reached one imports counts all the same.
    root
        Folder that holds scripts/ and kernels/; None: the checkout that this package lies in.

    Returns
    -------
    {"digest": hex sha256, "files": path relative to `root`, in order → hex sha256}: of its syntax tree, or of the bytes
    of a kernel source

    Raises
    ------
    FileNotFoundError
        The script, or a module named in `without`, does not exist.
    SyntaxError
        A reached file is not valid Python.
    """
    base = Path(root).resolve() if root is not None else repository()
    return _closure(base / script, tuple(sorted(set(without))), base)


def file_digests(files: Iterable[str], root: str | Path | None = None) -> dict[str, str | None]:
    """Digest single files of a checkout as `closure` does; None: there is no such file.

    Parameters
    ----------
    files
        Paths relative to `root`.
    root
        Folder that holds scripts/ and kernels/; None: the checkout that this package lies in.
    """
    base = Path(root).resolve() if root is not None else repository()
    return {name: _digest(base / name) if (base / name).is_file() else None for name in files}


def _digest(file: Path) -> str:
    source = file.read_bytes()
    if file.suffix in KERNEL_SOURCES:
        return hashlib.sha256(source).hexdigest()
    return _read(ast.parse(source, filename=str(file)), "")[0]


@cache
def _closure(script: Path, without: tuple[str, ...], root: Path) -> dict:
    for name in without:
        if _module(name, root) is None:
            raise FileNotFoundError(f"closure of {script.name}: module {name} to leave out does not exist")
    excluded = set(without)
    digests: dict[Path, str] = {}
    shelf = _shelf()
    waiting = [script]
    while waiting:
        file = waiting.pop()
        if file in digests:
            continue
        code, imported, registered, prefixes = _scan(file, _package(file, root), shelf)
        digests[file] = code
        for name in imported:
            waiting.extend(_module_files(name, root))
        for name in (*registered, *(member for prefix in prefixes for member in _members(prefix, root))):
            if any(name == other or name.startswith(f"{other}.") for other in excluded):
                continue
            waiting.extend(_module_files(name, root))
    if any(_relative(file, root).startswith("kernels/") for file in digests):
        for file in sorted((root / "kernels").rglob("*")):
            if file.suffix in KERNEL_SOURCES:
                digests[file] = hashlib.sha256(file.read_bytes()).hexdigest()
    shelf.close()
    listing = dict(sorted((_relative(file, root), code) for file, code in digests.items()))
    whole = hashlib.sha256("".join(f"{path}\0{code}\n" for path, code in listing.items()).encode())
    return {"digest": whole.hexdigest(), "files": listing}


def code_digests(names: Iterable[str], root: str | Path | None = None) -> dict[str, str | None]:
    """Digest files as `closure` does, by their path relative to `root`; None: not there, or no longer Python."""
    base = Path(root).resolve() if root is not None else repository()
    shelf = _shelf()
    found: dict[str, str | None] = {}
    for name in names:
        file = base / name
        found[name] = None
        with suppress(OSError, SyntaxError):
            compiled = file.suffix in KERNEL_SOURCES
            found[name] = sha256_file(file) if compiled else _scan(file, _package(file, base), shelf)[0]
    shelf.close()
    return found


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


@cache
def _module_files(name: str, root: Path) -> tuple[Path, ...]:
    """Give the module's file and the __init__ of every package on the way: importing it runs them all."""
    parts = name.split(".")
    found = (_module(".".join(parts[:end]), root) for end in range(1, len(parts) + 1))
    return tuple(file for file in found if file is not None)


class _Shelf:
    """Scans of earlier processes by the sha256 of what was scanned, kept where Python keeps its compiled files.

    Scanning ten thousand lines takes most of a second, and Snakemake asks at every start.
    """

    def __init__(self):
        tag = sys.implementation.cache_tag
        self.path = Path(__file__).parent / "__pycache__" / f"closure.{tag}.json"
        self.scans: dict[str, list] = {}
        self.grown = False
        with suppress(OSError, ValueError):
            self.scans = json.loads(self.path.read_text(encoding="utf-8"))

    def close(self) -> None:
        """Keep what was added; an installation that cannot be written to only costs time."""
        if self.grown:
            with suppress(OSError), atomic_path(self.path) as temporary:
                temporary.write_text(json.dumps(self.scans), encoding="utf-8")
            self.grown = False


@cache
def _shelf() -> _Shelf:
    """The shelf of this process: every rule asks for it."""
    return _Shelf()


@cache
def _own_code() -> bytes:
    """Give this module's source: scans made by another version of it do not count."""
    return Path(__file__).read_bytes()


def _scan(file: Path, package: str, shelf: _Shelf) -> tuple[str, list[str], list[str], list[str]]:
    """Digest one file's code; give the modules of ours that it imports, names in strings, and begins to name."""
    state = file.stat()
    key = _key(file, package, state.st_mtime_ns, state.st_size, state.st_ino)
    if key not in shelf.scans:
        shelf.scans[key] = _read(ast.parse(file.read_bytes(), filename=str(file)), package)
        shelf.grown = True
    code, imported, registered, prefixes = shelf.scans[key]
    return code, imported, registered, prefixes


@cache
def _key(file: Path, package: str, *_: int) -> str:
    """Key of a scan; a file is read again once it has other time stamps, another size or another inode."""
    return hashlib.sha256(b"\0".join([_own_code(), package.encode(), file.read_bytes()])).hexdigest()


def _read(tree: ast.Module, package: str) -> list:
    names: set[str] = set()
    registered: set[str] = set()
    prefixes: set[str] = set()
    for node in ast.walk(tree):
        _strip_docstring(node)
        _strip_types(node)
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
                registered.add(match[1] + match[2])
            elif match := _PREFIX.match(node.value):
                prefixes.add(match[1] + match[2])
    ours = sorted(name for name in names if name.split(".")[0] in PACKAGES)
    # unparse, unlike dump, spells the same tree alike under every version of Python.
    return [hashlib.sha256(ast.unparse(tree).encode()).hexdigest(), ours, sorted(registered), sorted(prefixes)]


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


def _strip_types(node: ast.AST) -> None:
    """What only type checkers import is never run."""
    if isinstance(node, ast.Module):
        node.body = [
            item
            for item in node.body
            if not (isinstance(item, ast.If) and ast.unparse(item.test) == "TYPE_CHECKING" and not item.orelse)
        ]
