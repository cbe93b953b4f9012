"""Host files that Compose may read for a project, and the engine for a build."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from longshore.orchestration.errors import NotAllowed, Preflight
from longshore.orchestration.operations import find
from longshore.orchestration.settings import get_settings
from longshore.tasks.implementation import Context
from longshore.tasks.operations.compose import reads
from longshore.tasks.operations.compose.cli import Source, check_build, source_of
from longshore.tasks.operations.docker.images import _archive


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only root of the worker, beside a forbidden file."""
    home = tmp_path / "home"
    (home / "inner").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "secret.env").write_text("A=correct-horse\n")
    monkeypatch.setenv("LONGSHORE_ALLOWED_ROOTS", str(home))
    get_settings.cache_clear()
    return home


def params(**given: Any) -> Any:
    return find("compose.up.execute").params.model_validate(given)


def test_project_paths_must_lie_in_the_roots(home: Path) -> None:
    fine = params(project_dir=str(home), files=["compose.yaml"], env_file=["inner/x.env"])
    assert source_of(fine, None).files == (f"{home}/compose.yaml",)
    (home / "out").symlink_to(home.parent / "other")
    for given in (
        {"project_dir": "/etc"}, {"project_dir": f"{home}/../other"}, {"project_dir": f"{home}/out"},
        {"project_dir": str(home), "files": ["../other/compose.yaml"]},
        {"project": "x", "files": ["/etc/compose.yaml"]},
        {"project_dir": str(home), "files": ["out/compose.yaml"]}, {"project_dir": str(home), "env_file": ["/etc/x"]},
        {"project_dir": str(home), "env_file": ["/proc/1/environ"]},
    ):  # fmt: skip
        with pytest.raises(NotAllowed, match="is outside"):
            source_of(params(**given), None)
    with pytest.raises(NotAllowed):  # paths from the labels of a container
        source_of(params(project="shop"), Source("shop", "/etc", ("/proc/1/environ",)))


SERVICE = "services: {web: {image: a, %s}}"


@pytest.mark.parametrize(
    "text",
    [
        SERVICE % "env_file: ../other/secret.env",
        SERVICE % "env_file: [a.env, /proc/1/environ]",
        SERVICE % "env_file: [{path: /proc/self/environ, required: false, format: raw}]",
        SERVICE % "env_file: !override [/etc/passwd]",
        SERVICE % "env_file: out/secret.env",
        SERVICE % "env_file: ~/secret.env",
        SERVICE % "env_file: ~root/../proc/1/environ",
        SERVICE % "label_file: /etc/passwd",
        SERVICE % "extends: {file: ../other/base.yaml, service: web}",
        SERVICE % "extends: {file: inner/base.yaml, service: web}",
        "x-a: &a {env_file: /etc/passwd}\nservices: {web: {<<: *a, image: a}}",
        "include: [/etc/passwd]",
        "include: [{path: inner/more.yaml}]",
        "include: [{path: [inner/fine.yaml], env_file: /etc/passwd}]",
        "include: [{path: [inner/fine.yaml], project_directory: inner/dir}]",
        "include: ['oci://registry.example/x', a.yaml]",
        "include: [https://registry.example/x.git]",
        "include: [git@registry.example:x.git]",
        SERVICE % "env_file: '${WHERE}'",
        "{}\n---\n" + SERVICE % "env_file: /etc/passwd",
    ],
)
def test_paths_in_project_files_must_lie_in_the_roots(text: str, home: Path) -> None:
    (home / "out").symlink_to(home.parent / "other")
    (home / "inner" / "base.yaml").write_text(SERVICE % "env_file: /etc/passwd")
    (home / "inner" / "more.yaml").write_text("include: [../../other/x.yaml]")
    (home / "inner" / "fine.yaml").write_text(SERVICE % "env_file: fine.env")
    (home / "inner" / "dir").mkdir()
    (home / "inner" / "dir" / ".env").symlink_to("/etc/passwd")
    (home / "compose.yaml").write_text(text)
    for files in ([], [f"{home}/compose.yaml"]):
        with pytest.raises(NotAllowed, match=r"is outside|not a file of this host|where .* leads|cannot be checked"):
            reads.check(str(home), files, [])


def test_ordinary_project_is_accepted(home: Path) -> None:
    (home / "inner" / "more.yaml").write_text("include: [../compose.yaml]\nservices: {more: {env_file: x.env}}")
    (home / "compose.yaml").write_text(
        "include: [inner/more.yaml]\n"
        "services: {web: {image: a, env_file: [a.env, {path: b.env}], extends: base, ports: !reset [],"
        " environment: {D: 2024-99-99}}, base:}\nx-none:\n"
    )
    (home / ".env").write_text("A=1\n")
    reads.check(str(home), [], [])
    reads.check(str(home), [f"{home}/compose.yaml", f"{home}/not-there.yaml"], [f"{home}/.env"])
    (home / ".env").unlink()
    (home / ".env").symlink_to("/etc/passwd")
    with pytest.raises(NotAllowed, match="is outside"):
        reads.check(str(home), [], [])


@pytest.mark.parametrize("text", ["a: [", "a: !!python/object:os.system x", "a: &a [*a", "\0"])
def test_unparsable_project_file_is_refused(text: str, home: Path) -> None:
    (home / "compose.yaml").write_text(f"{text}\n# correct-horse\n")
    with pytest.raises(Preflight, match="is not a valid Compose file") as refused:
        reads.check(str(home), [], [])
    assert "correct-horse" not in str(refused.value)


def test_build_context_lies_in_the_roots_and_holds_its_dockerfile(home: Path, tmp_path: Path) -> None:
    (home / "Dockerfile").write_text("FROM scratch\n")
    (home / "link").symlink_to("/etc/passwd")
    (home / "ctx").symlink_to(tmp_path / "other")
    (home / ".dockerignore").symlink_to("/etc/passwd")
    (tmp_path / "other" / "Dockerfile").write_text("FROM scratch\n")
    build, ctx = find("docker.build.execute").params, Context("r", "s", "p")

    def archive(**given: str) -> None:
        _archive(ctx, build.model_validate({"image": "attempts:1", "context": str(home)} | given)).close()

    for given in ({"context": str(tmp_path / "other")}, {"context": f"{home}/ctx"}, {"context": f"{home}/.."},
                 {"dockerfile": "../other/Dockerfile"}, {"dockerfile": "link"},
                 {"dockerfile": "/etc/passwd"}):  # fmt: skip
        with pytest.raises(NotAllowed, match="is outside"):
            archive(**given)
    with pytest.raises(NotAllowed, match="is outside"):
        archive()  # the .dockerignore names a file outside of the root
    (home / ".dockerignore").unlink()
    archive()


def test_build_context_must_not_contain_worker_files(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "Dockerfile").write_text("FROM scratch\n")
    monkeypatch.setenv("LONGSHORE_STATE_DIR", str(home / "state"))
    get_settings.cache_clear()
    for check in (
        lambda: _archive(
            Context("r", "s", "p"),
            find("docker.build.execute").params.model_validate({"image": "attempts:1", "context": str(home)}),
        ),
        lambda: check_build({"context": str(home)}),
    ):
        with pytest.raises(NotAllowed, match="keys or state"):
            check()


def test_service_build_applies_the_same_rules(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_build({"context": str(home), "dockerfile": "inner/Dockerfile", "additional_contexts": {"a": "service:b"}})
    monkeypatch.setenv("LONGSHORE_ALLOWED_HOSTS", "registry.example")
    get_settings.cache_clear()
    check_build({"context": "https://registry.example/x.git"})
    for build in (
        {"context": "/etc"}, {"context": str(home), "dockerfile": "../../other/Dockerfile"},
        {"context": str(home), "additional_contexts": {"a": "/etc"}}, {"context": "https://elsewhere.example/x.git"},
        {"context": "git@registry.example:x.git"}, {"context": str(home), "additional_contexts": {"a": "oci-layout://x"}},
    ):  # fmt: skip
        with pytest.raises(Preflight):
            check_build(build)
