"""Sizes, docstrings and packaging files keep to what the contributors agreed on."""

import ast
import configparser
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from medsegdiff_jax.version import __version__

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("medsegdiff_jax", "configs", "data", "benchmarks", "tests")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
PYTHON_VERSIONS = ("3.11", "3.12")
# Names that a library calls; their meaning is documented there.
HOOKS = {"setup"}


def _python_files() -> list[Path]:
    folders = (path for name in FOLDERS for path in sorted((ROOT / name).rglob("*.py")))
    return [*sorted(ROOT.glob("*.py")), *folders]


def _product_files() -> list[Path]:
    return [
        path
        for path in _python_files()
        if path.relative_to(ROOT).parts[0] != "tests"
        and not path.name.startswith("test_")
        and not path.name.endswith("_test.py")
    ]


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _where(path: Path, line: int = 1) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def _public(body: list[ast.stmt]) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """Public functions, classes and their public methods; not what is nested in functions."""
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if node.name.startswith("_") or node.name in HOOKS:
            continue
        yield node
        if isinstance(node, ast.ClassDef):
            yield from _public(node.body)


def _requirements(extras: bool) -> list[Requirement]:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    text = config["options"]["install_requires"]
    if extras:
        text += "\n" + config["options.extras_require"]["test"]
    return [Requirement(line) for line in text.splitlines() if line]


def test_no_file_is_too_long():
    lengths = {_where(path): len(path.read_bytes().splitlines()) for path in _python_files()}
    assert lengths
    wrong = {where: n for where, n in lengths.items() if n > MAX_FILE_LINES}
    assert not wrong, wrong


def test_no_function_is_too_long():
    wrong = {}
    for path in _python_files():
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = node.end_lineno - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    wrong[f"{_where(path, node.lineno)} {node.name}"] = length
    assert not wrong, wrong


def test_everything_public_has_a_docstring():
    wrong = []
    for path in _product_files():
        tree = _tree(path)
        if tree.body and not ast.get_docstring(tree):
            wrong.append(f"{_where(path)} (module)")
        wrong.extend(
            f"{_where(path, node.lineno)} {node.name}"
            for node in _public(tree.body)
            if not ast.get_docstring(node)
        )
    assert not wrong, wrong


def test_nothing_is_left_to_do():
    mark = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")
    wrong = [
        _where(path, number)
        for path in (*_python_files(), ROOT / "Makefile", ROOT / "setup.cfg")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if mark.search(line)
    ]
    assert not wrong, wrong


@pytest.mark.parametrize("version", PYTHON_VERSIONS)
def test_constraints_pin_every_requirement_once(version):
    """For this Python there is exactly one pin, and the lower bound of setup.cfg admits it."""
    environment = {"python_version": version, "python_full_version": f"{version}.0"}
    pins: dict[str, list[str]] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            (specifier,) = pin.specifier
            assert specifier.operator == "==", line
            if pin.marker is None or pin.marker.evaluate(environment):
                pins.setdefault(canonicalize_name(pin.name), []).append(specifier.version)
    twice = {name: found for name, found in pins.items() if len(found) > 1}
    assert not twice, twice
    wrong = [
        f"{requirement} has pin {pins.get(canonicalize_name(requirement.name))}"
        for requirement in _requirements(extras=True)
        if not requirement.specifier.contains(
            pins.get(canonicalize_name(requirement.name), ["0"])[0], prereleases=True
        )
    ]
    assert not wrong, wrong


def test_every_run_time_requirement_has_a_lower_bound():
    wrong = [str(r) for r in _requirements(extras=False) if ">=" not in str(r.specifier)]
    assert not wrong, wrong


@pytest.mark.parametrize(
    ("file", "pattern"),
    [("CITATION.cff", r"^version: (\S+)$"), ("README.md", r"^  version = \{(\S+)\},$")],
)
def test_whoever_cites_names_this_version(file, pattern):
    found = re.findall(pattern, (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
    assert found == [__version__]


def test_ruff_is_configured():
    with open(ROOT / "pyproject.toml", "rb") as file:
        ruff = tomllib.load(file)["tool"]["ruff"]
    assert ruff["line-length"] == 100
    assert {"E", "F", "I", "UP", "B", "D"} <= set(ruff["lint"]["select"])
