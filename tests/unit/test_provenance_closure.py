"""The code closure: what is counted moves it, what is not counted does not."""

import shutil
from itertools import count
from pathlib import Path

import pytest

from conceptome.provenance.closure import closure, repository

FILES = {
    "scripts/learn.py": """
        from conceptome.alpha import work

        work()
    """,
    "scripts/conceptome/__init__.py": "",
    "scripts/conceptome/alpha.py": '''
        """Alpha."""
        from conceptome import files


        def work():
            """Work."""
            from .deep.inner import go

            return go(files)
    ''',
    "scripts/conceptome/files.py": "X = 1\n",
    "scripts/conceptome/unrelated.py": "Y = 1\n",
    "scripts/conceptome/deep/__init__.py": 'REGISTRY = {"one": "conceptome.deep.one:fit"}\n',
    "scripts/conceptome/deep/inner.py": "def go(x):\n    return x\n",
    "scripts/conceptome/deep/one.py": "def fit():\n    return 1\n",
    "scripts/conceptome/deep/two.py": "def fit():\n    return 2\n",
}


def dedent(text: str) -> str:
    import textwrap

    return textwrap.dedent(text).lstrip("\n")


@pytest.fixture
def digest(tmp_path):
    """Digest of scripts/learn.py in a fresh copy of the toy house with some files replaced."""
    numbers = count()

    def compute(changes=None, without=(), part="digest"):
        root = tmp_path / str(next(numbers))
        for name, text in {**FILES, **(changes or {})}.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(dedent(text))
        return closure("scripts/learn.py", root=root, without=without)[part]

    return compute


def test_lists_what_is_reached_and_nothing_else(digest):
    assert list(digest(part="files")) == [
        "scripts/conceptome/__init__.py",
        "scripts/conceptome/alpha.py",
        "scripts/conceptome/deep/__init__.py",
        "scripts/conceptome/deep/inner.py",
        "scripts/conceptome/deep/one.py",
        "scripts/conceptome/files.py",
        "scripts/learn.py",
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"scripts/learn.py": "# a comment\nfrom conceptome.alpha import work\nwork( )\n"},
        {
            "scripts/conceptome/alpha.py": dedent(FILES["scripts/conceptome/alpha.py"]).replace(
                "Work.", "Labour, longer."
            )
        },
        {"scripts/conceptome/files.py": '"""A docstring where none was."""\n\n\nX = 1  # one\n'},
        {"scripts/conceptome/unrelated.py": "Y = 2\n"},
        {"scripts/conceptome/deep/two.py": "def fit():\n    return 3\n"},
    ],
    ids=["comment", "docstring", "new docstring", "unrelated", "unregistered"],
)
def test_what_does_not_count(digest, change):
    assert digest(change) == digest()


@pytest.mark.parametrize(
    "change",
    [
        {"scripts/learn.py": "from conceptome.alpha import work\nwork(1)\n"},
        {"scripts/conceptome/files.py": "X = 2\n"},
        {"scripts/conceptome/deep/inner.py": "def go(x):\n    return [x]\n"},
        {"scripts/conceptome/deep/one.py": "def fit():\n    return 10\n"},
        {"scripts/conceptome/__init__.py": "Z = 1\n"},
    ],
    ids=["script", "imported", "inside a function, relative", "named in a registry", "package on the way"],
)
def test_what_counts(digest, change):
    assert digest(change) != digest()


def test_an_f_string_with_a_package_name_reaches_the_whole_package(digest):
    change = {"scripts/conceptome/deep/inner.py": 'def go(x):\n    return __import__(f"conceptome.deep.{x}")\n'}
    assert "scripts/conceptome/deep/two.py" in digest(change, part="files")


def test_modules_can_be_left_out(digest):
    assert "scripts/conceptome/deep/one.py" not in digest(without=["conceptome.deep.one"], part="files")
    assert "scripts/conceptome/deep/inner.py" in digest(without=["conceptome.deep.one"], part="files")
    imported = {"scripts/conceptome/deep/inner.py": "import conceptome.deep.one\n"}
    assert "scripts/conceptome/deep/one.py" in digest(imported, without=["conceptome.deep.one"], part="files")
    with pytest.raises(FileNotFoundError, match=r"conceptome\.deep\.three"):
        digest(without=["conceptome.deep.three"])


def test_kernel_sources_count_where_the_kernels_are_reached(digest):
    kernels = {"kernels/conceptome_kernels/__init__.py": "", "kernels/cpu/topk.cpp": "int a;"}
    edited = {**kernels, "kernels/cpu/topk.cpp": "int b;"}
    assert digest(kernels) == digest(edited) == digest()
    reach = {"scripts/conceptome/deep/one.py": "import conceptome_kernels\n"}
    assert digest({**kernels, **reach}) != digest({**edited, **reach})


def test_touching_and_moving_change_nothing(tmp_path, digest):
    root = tmp_path / "0"
    first = digest()
    shutil.copytree(root, tmp_path / "moved")
    for path in (tmp_path / "moved").rglob("*.py"):
        path.touch()
    assert closure("scripts/learn.py", root=tmp_path / "moved")["digest"] == first


def test_the_real_house():
    scripts = sorted((repository() / "scripts").glob("*.py"))
    for script in scripts:
        found = closure(script)
        assert f"scripts/{script.name}" in found["files"]
        assert not any(Path(file).is_absolute() for file in found["files"])
