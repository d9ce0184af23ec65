"""Imports point down only, and only at libraries that the installation names."""

import ast
import functools
import re
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "medsegdiff_jax"

# A unit is a module or a whole sub-package of medsegdiff_jax. It may import units of lower layers.
LAYERS = {
    "types": 0,
    "atomic": 0,
    "version": 0,
    "trees": 0,
    "augment": 1,
    "cli": 1,
    "fusion": 1,
    "groups": 1,
    "hosts": 1,
    "imaging": 1,
    "metrics": 1,
    "networks": 1,
    "partitioning": 1,
    "progress": 1,
    "schedules": 1,
    "ensemble_size": 2,
    "decision": 2,
    "drawing": 3,
    "process": 2,
    "volumes": 2,
    "losses": 3,
    "samplers": 3,
    "settings": 3,
    "denoiser": 4,
    "train_state": 4,
    "checkpoint": 5,
    "html_report": 5,
    "train_step": 5,
    "input_pipeline": 5,
    "display": 2,
    "plots": 3,
    "writer": 5,
    "evaluator": 6,
    "export": 6,
    "fine_tuning": 6,
    "result_files": 6,
    "scored_files": 6,
    "scoring": 7,
    "uncertainty_plots": 6,
    "uncertainty_scoring": 2,
    "workdir": 6,
    "worst_cases": 6,
    "segmenter": 7,
    "trainer": 7,
    "picture_output": 8,
    "temperature": 8,
    "volume_output": 8,
    "prediction": 9,
    "__init__": 10,  # the public names: Segmenter, fusion, metrics
}
# What lies beside the package. Dataset builders stand below the input pipeline, which imports them.
FOLDERS = {"configs": 0, "data": 3, "benchmarks": 12, "tests": 13}
COMMANDS = 11  # train.py, sample.py, ... in the root

WITHOUT_LINEN = ("fusion", "metrics", "process", "samplers", "schedules")
FORBIDDEN = {"tensorflow", "torch", "cv2"}
COMPARED_WITH = {"benchmarks": {"torch"}}
MAY_IMPORT_TFDS = ("data", "input_pipeline")
# What these import beyond the run-time requirements, only their users need.
UNDECLARED = ("benchmarks", "tests")


def _unit(path: Path) -> str:
    """The unit that a file belongs to: "process", "metrics", "data", "tests", "train.py", ..."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] != PACKAGE:
        return parts[0] if len(parts) > 1 else path.name
    return parts[1]


def _layer(unit: str) -> int:
    if unit.endswith(".py"):
        return COMMANDS
    layer = {**LAYERS, **FOLDERS}.get(unit)
    assert layer is not None, f"{unit}: unknown module, give it a layer in LAYERS"
    return layer


@functools.cache
def _files() -> tuple[Path, ...]:
    folders = (ROOT / name for name in (PACKAGE, *FOLDERS))
    return (*sorted(ROOT.glob("*.py")), *(f for d in folders for f in sorted(d.rglob("*.py"))))


@functools.cache
def _imports(path: Path) -> frozenset[str]:
    """Dotted names that a file imports, `from a import b` as "a.b"; relative ones made absolute.

    Calls of import_module and __import__ with a literal count, and so does `flax.linen` where it is
    reached as an attribute after a bare `import flax`.
    """
    names = set()
    here = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join((*here[: len(here) - node.level + 1], *filter(None, [base])))
            names.update(f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "flax.linen":
            names.add("flax.linen")
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
            ("import_module", "__import__")
        ):
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                names.add(first.value)
    return frozenset(names)


def _units_imported(path: Path) -> Iterator[str]:
    """Units of this project that a file imports."""
    for name in _imports(path):
        top, *rest = name.split(".")
        if top == PACKAGE:
            submodule = rest and (
                (ROOT / PACKAGE / f"{rest[0]}.py").exists() or (ROOT / PACKAGE / rest[0]).is_dir()
            )
            yield rest[0] if submodule else "__init__"
        elif top in FOLDERS:
            yield top
        elif (ROOT / f"{top}.py").exists():
            yield f"{top}.py"


def _where(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_every_module_has_a_layer():
    for unit in {_unit(path) for path in _files()}:
        _layer(unit)


def test_imports_point_down():
    wrong = []
    for path in _files():
        unit = _unit(path)
        for imported in _units_imported(path):
            if imported != unit and _layer(imported) >= _layer(unit):
                wrong.append(
                    f"{_where(path)} (layer {_layer(unit)}) imports {imported} "
                    f"(layer {_layer(imported)})"
                )
    assert not wrong, "\n".join(wrong)


def test_no_import_cycle_inside_a_package():
    for unit in ("metrics", "networks"):
        graph = {}
        for path in (ROOT / PACKAGE / unit).glob("*.py"):
            inner = (n.split(".") for n in _imports(path) if n.startswith(f"{PACKAGE}.{unit}."))
            graph[path.stem] = {parts[2] for parts in inner} - {path.stem}
        while graph:
            free = {name for name, needed in graph.items() if not needed & graph.keys()}
            assert free, f"{unit}: import cycle among {sorted(graph)}"
            graph = {name: needed for name, needed in graph.items() if name not in free}


@pytest.mark.parametrize("unit", WITHOUT_LINEN)
def test_mathematics_does_not_know_flax_linen(unit):
    """Neither directly nor through another unit of the package."""
    reached, waiting = set(), {unit}
    while waiting:
        current = waiting.pop()
        reached.add(current)
        for path in _files():
            if _unit(path) != current:
                continue
            linen = [name for name in _imports(path) if name.startswith("flax.linen")]
            assert not linen, f"{unit} reaches {linen} in {_where(path)}"
            waiting |= set(_units_imported(path)) - reached


def test_no_other_framework():
    wrong = [
        f"{_where(path)}: {name}"
        for path in _files()
        for name in _imports(path)
        if name.split(".")[0] in FORBIDDEN - COMPARED_WITH.get(_unit(path), set())
    ]
    assert not wrong, wrong


def test_tensorflow_datasets_only_where_data_enters():
    wrong = [
        _where(path)
        for path in _files()
        if _unit(path) not in (*MAY_IMPORT_TFDS, "tests")
        and any(name.split(".")[0] == "tensorflow_datasets" for name in _imports(path))
    ]
    assert not wrong, wrong


def test_configs_import_nothing_heavy():
    allowed = {"ml_collections", "configs"} | sys.stdlib_module_names
    wrong = [
        f"{_where(path)}: {name}"
        for path in _files()
        if _unit(path) == "configs"
        for name in _imports(path)
        if name.split(".")[0] not in allowed
    ]
    assert not wrong, wrong


def test_every_imported_library_is_declared():
    """A library that only comes along with another one may leave with it."""
    text = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    block = re.search(r"^install_requires =\n((?:[ \t].*\n|\n)+)", text, re.MULTILINE).group(1)
    lines = (line.strip() for line in block.splitlines())
    declared = {_normal(Requirement(line).name) for line in lines if line and line[0] != "#"}
    provided_by = packages_distributions()
    local = {PACKAGE, *FOLDERS, *(path.stem for path in ROOT.glob("*.py"))}
    wrong = set()
    for path in _files():
        if _unit(path) in UNDECLARED or path.stem.endswith("_test"):
            continue
        for name in _imports(path):
            top = name.split(".")[0]
            if top in local or top in sys.stdlib_module_names:
                continue
            if not declared & {_normal(d) for d in provided_by.get(top, [top])}:
                wrong.add(f"{_where(path)}: {top}")
    assert not wrong, f"add to install_requires or do without: {sorted(wrong)}"


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
