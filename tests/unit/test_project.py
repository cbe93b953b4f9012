"""The files around the code: the lock, the hosted workflow, and the checks before a commit."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = (ROOT / "requirements.lock").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
#: Actions that a workflow may use beside make.
ACTIONS = {"actions/checkout"}


def entries() -> list[tuple[Requirement, list[str]]]:
    """The lock's packages with their hashes."""
    lines = LOCK.replace("\\\n", " ").splitlines()
    found = [line.split("--hash=") for line in lines if line and not line.startswith("#")]
    return [(Requirement(first), [one.strip() for one in hashes]) for first, *hashes in found]


def locked(python: str) -> dict[str, str]:
    """The version of each package that is installed on Linux with this Python."""
    environment = {"python_version": python, "python_full_version": f"{python}.4", "sys_platform": "linux"}
    applying = [pin for pin, _ in entries() if pin.marker is None or pin.marker.evaluate(environment)]
    return {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in applying}


def declared() -> Iterator[Requirement]:
    """All requirements of pyproject.toml, with every extra and the build backend."""
    project = PROJECT["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values(), PROJECT["build-system"]["requires"]]
    yield from (Requirement(text) for group in groups for text in group)


def steps() -> Iterator[dict[str, Any]]:
    for job in workflow()["jobs"].values():
        yield from job["steps"]


def workflow() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    return found


def plan_record(target: str) -> str:
    """The commands of a target in the Makefile, each on one line."""
    found = re.search(rf"^{target}:[^\n]*\n((?:\t[^\n]*\n)+)", MAKEFILE, re.MULTILINE)
    assert found is not None, target
    return re.sub(r"^\t@?", "", re.sub(r"\s*\\\n\s*", " ", found[1]), flags=re.MULTILINE)


def test_locked_packages_have_one_version_and_hashes() -> None:
    assert len(entries()) > 50
    for pin, hashes in entries():
        assert re.fullmatch(r"==[^,*]+", str(pin.specifier)), pin
        assert hashes, pin
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", one) for one in hashes), pin


def test_lock_names_no_index_or_path() -> None:
    assert not re.search(r"://|--(extra-)?index-url|--find-links|^-e |^\S+ @ |(?<![\w.-])/", LOCK, re.MULTILINE)


@pytest.mark.parametrize("python", PYTHONS)
def test_declared_dependencies_are_locked_in_admitted_versions(python: str) -> None:
    versions = locked(python)

    missing = [
        str(wanted)
        for wanted in declared()
        if not wanted.specifier.contains(versions.get(canonicalize_name(wanted.name), "0"), prereleases=True)
    ]

    assert not missing, "run make lock"


def test_lock_records_the_make_lock_command() -> None:
    command = next(line for line in LOCK.splitlines() if " pip compile " in line).removeprefix("#").split()

    made_by = plan_record("lock").replace("$(LOCK)", "requirements.lock").splitlines()[-1].split()

    assert [word for word in made_by[1:] if word not in {"--quiet", "--upgrade"}] == command[1:]
    assert re.search(r"^UV := uv==\d+\.\d+\.\d+$", MAKEFILE, re.MULTILINE)


def test_build_backend_lock_matches_its_declaration() -> None:
    assert PROJECT["dependency-groups"]["build"] == PROJECT["build-system"]["requires"]


def test_environment_is_installed_from_the_lock_only() -> None:
    installs = re.findall(r"\$\((?:UV|PIP)_INSTALL\) [^|;]*", plan_record(r"\.venv/\.locked"))
    assert [install.split()[1:] for install in installs] == [["--require-hashes", "-r", "$(LOCK)"]] * 2
    assert "--no-deps --no-build-isolation" in plan_record(r"\.venv/\.env")
    assert re.search(r"^\.venv/\.locked: \$\(LOCK\)", MAKEFILE, re.MULTILINE)


def test_images_are_installed_from_the_lock_only() -> None:
    text = (ROOT / "compose/Dockerfile").read_text()
    commands = [line for line in text.splitlines() if re.search(r"\bpip\b.* (download|install)\b", line)]

    assert len(commands) == 3
    assert "--require-hashes" in commands[0]
    assert all("--no-index --find-links /packages" in line for line in commands[1:])


def test_workflow_calls_only_make_and_uses_no_secrets() -> None:
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    for step in steps():
        assert set(step) <= {"uses", "run", "with"}
        if "uses" in step:
            assert step["uses"].partition("@")[0] in ACTIONS
        else:
            words = step["run"].split()
            assert (words[0], len(words)) == ("make", 2)
            assert words[1] in targets
    text = (ROOT / ".github/workflows/ci.yml").read_text().lower()
    assert not re.search(r"secret|token|password", text)


def test_workflow_tests_every_python_and_newest_versions_weekly() -> None:
    found = workflow()
    jobs, started = found["jobs"], found[True]  # YAML 1.1 reads `on` as true

    assert tuple(jobs["test"]["strategy"]["matrix"]["python"]) == PYTHONS
    assert any(step.get("run", "").startswith("make test") for step in jobs["test"]["steps"])
    assert any(step.get("run", "").startswith("make latest") for step in jobs["latest"]["steps"])
    assert re.fullmatch(r"\d+ \d+ \* \* [0-6]", started["schedule"][0]["cron"])
    # A missing server fails a test only where CI is set.
    assert all(job["env"]["CI"] == "1" for job in jobs.values())


def test_merge_tests_use_the_readme_command() -> None:
    script = (ROOT / ".ci/run").read_text()

    assert "export CI=1" in script
    assert "make test" in script
    assert "    make test " in (ROOT / "README.md").read_text()


def test_pre_commit_matches_make_lint() -> None:
    configured = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = [hook for repo in configured["repos"] for hook in repo["hooks"]]

    assert [hook["entry"] for hook in hooks] == plan_record("lint").replace("$(BIN)", ".venv/bin").splitlines()
    assert all(hook["language"] == "system" and hook["pass_filenames"] is False for hook in hooks)


def test_license_matches_its_declaration() -> None:
    assert (ROOT / "LICENSE").read_text().startswith(f"{PROJECT['project']['license']} License")
