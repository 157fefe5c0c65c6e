"""Rules of the house that no linter knows: file length, forbidden words, what `__init__.py` files hold."""

from __future__ import annotations

import ast
import io
import statistics
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("core", "adapters", "exporters", "kernels")


def sources(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return [path for path in found if not any(part.is_symlink() for part in path.parents)]


def test_files_are_short() -> None:
    lengths = {
        path: len(path.read_text().splitlines()) for path in sources(*FOLDERS, "src", "tests", "benchmarks")
    }
    assert {str(path): length for path, length in lengths.items() if length > 400} == {}
    assert statistics.median(lengths[path] for path in sources(*FOLDERS, "src")) <= 150


@pytest.mark.parametrize("word", ["pickle", "torch.load(", "torch.save(", "except Exception"])
def test_forbidden_words_do_not_occur_in_code(word: str) -> None:
    assert [str(path) for path in sources(*FOLDERS) if word in _without_comments(path)] == []


def test_packages_hand_names_on_and_define_nothing() -> None:
    allowed = (ast.Import, ast.ImportFrom, ast.Expr, ast.Assign)
    offenders = [
        str(path)
        for path in sources(*FOLDERS)
        if path.name == "__init__.py"
        and not all(isinstance(node, allowed) for node in ast.parse(path.read_text()).body)
    ]
    assert offenders == []


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        str(path) for path in sources(*FOLDERS, "src") if not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []


def _without_comments(path: Path) -> str:
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
    return tokenize.untokenize(token for token in tokens if token.type != tokenize.COMMENT)
