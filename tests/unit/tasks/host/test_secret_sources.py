"""Sources of a worker's `secret()`, and values that no name or setting discloses."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from longshore.orchestration.errors import NotAllowed, Preflight
from longshore.orchestration.messaging import signing
from longshore.orchestration.settings import Settings, get_settings
from longshore.tasks.host.secret_sources import read

PASSWORD = "swordfish-and-more"  # noqa: S105 - of nothing
URL = f"redis://worker:{PASSWORD}@redis:6379/0"


@pytest.fixture
def admit(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def make(*entries: object, **settings: object) -> None:
        if entries:
            monkeypatch.setenv("LONGSHORE_ALLOWED_SECRETS", ",".join(map(str, entries)))
        for name, value in settings.items():
            monkeypatch.setenv(f"LONGSHORE_{name.upper()}", str(value))
        get_settings.cache_clear()

    return make


@pytest.fixture
def keys(tmp_path: Path, admit: Callable[..., None]) -> Path:
    path = tmp_path / "longshore" / "keys.json"
    path.parent.mkdir()
    path.write_text(signing.written([signing.new_key("worker"), signing.new_key("client")]))
    path.chmod(0o600)
    admit(keys=path, redis_url=URL)
    return path


def test_default_secret_sources_are_prefixed_variables_and_run_secrets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LONGSHORE_SECRET_DB", "correct-horse")
    monkeypatch.setenv("DB_PASSWORD", "correct-horse")
    (tmp_path / "db").write_text("correct-horse")
    assert read("env:LONGSHORE_SECRET_DB") == "correct-horse"
    for reference in ("env:DB_PASSWORD", "env:PATH", "env:longshore_secret_db", f"file:{tmp_path}/db",
                      "file:/etc/passwd", "file:/run/secrets/../../etc/passwd"):  # fmt: skip
        with pytest.raises(NotAllowed, match="ALLOWED_SECRETS"):
            read(reference)
    with pytest.raises(Preflight, match="No such file"):
        read("file:/run/secrets/longshore-has-no-such-secret")
    with pytest.raises(NotAllowed):
        read("file:/no/such/folder/either")


def test_secret_list_allows_name_prefixes_and_folders(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, admit: Callable[..., None]
) -> None:
    admit("APP_", tmp_path / "given")
    monkeypatch.setenv("APP_TOKEN", "correct-horse")
    monkeypatch.setenv("LONGSHORE_SECRET_DB", "correct-horse")
    (tmp_path / "given" / "..data").mkdir(parents=True)
    (tmp_path / "given" / "..data" / "token").write_text("correct-horse\n")
    (tmp_path / "given" / "token").symlink_to("..data/token")
    assert read("env:APP_TOKEN") == read(f"file:{tmp_path}/given/token") == "correct-horse"
    with pytest.raises(NotAllowed):
        read("env:LONGSHORE_SECRET_DB")
    admit("-")
    with pytest.raises(NotAllowed):
        read("env:APP_TOKEN")
    with pytest.raises(ValidationError, match="neither a prefix"):
        Settings(allowed_secrets="APP_*")


def test_missing_secret_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, admit: Callable[..., None]
) -> None:
    admit("NO_SUCH", "SHORT", tmp_path)
    monkeypatch.delenv("NO_SUCH", raising=False)
    monkeypatch.setenv("SHORT", "abc")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x01")
    (tmp_path / "large").write_bytes(b"x" * 70_000)
    os.mkfifo(tmp_path / "pipe")
    for reference, why in (
        ("env:NO_SUCH", "is not set"),
        ("env:SHORT", "fewer than 4"),
        (f"file:{tmp_path}/nothing", "No such file"),
        (f"file:{tmp_path}/binary", "not UTF-8 text"),
        (f"file:{tmp_path}/large", "larger than"),
        (f"file:{tmp_path}/pipe", "not a regular file"),
        (f"file:{tmp_path}", "not a regular file|lies in no folder"),
    ):
        with pytest.raises(Preflight, match=why):
            read(reference)


@pytest.mark.parametrize(
    "name",
    ["LONGSHORE_REDIS_URL", "longshore_redis_url", "LONGSHORE_KEYS", "LONGSHORE_NOTIFY_SECRET", "LONGSHORE_CONFIG",
     "LONGSHORE_SECRETS", "LONGSHORE_WORKER_URL", "CELERY_BROKER_URL", "FLOWER_BASIC_AUTH", "REDIS_ADMIN_PASSWORD"],
)  # fmt: skip
def test_installation_settings_are_not_plan_secrets(
    name: str, monkeypatch: pytest.MonkeyPatch, admit: Callable[..., None]
) -> None:
    admit("L", "l", "CELERY_", "FLOWER_", "REDIS_", "/")
    get_settings()  # as a worker has read them when it started
    monkeypatch.setenv(name, "correct-horse")
    with pytest.raises(NotAllowed, match="a setting of Longshore"):
        read(f"env:{name}")


def test_worker_credentials_are_not_plan_secrets(
    keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, admit: Callable[..., None]
) -> None:
    admit("APP_", tmp_path)
    secret = signing.read(keys).keys[0].secret
    for value in (URL, PASSWORD, f"x{URL}y", URL.replace("/0", "/1"), secret, f'{{"secret": "{secret}"}}'):
        monkeypatch.setenv("APP_REDIS", value)
        (tmp_path / "copy").write_text(value)
        for reference in ("env:APP_REDIS", f"file:{tmp_path}/copy"):
            with pytest.raises(NotAllowed, match="a credential of this worker") as refused:
                read(reference)
            assert value not in str(refused.value)
    monkeypatch.setenv("APP_REDIS", "redis://app:another-one@redis:6379/0")
    assert read("env:APP_REDIS")


def test_keys_and_state_folder_are_unreachable_as_secrets(
    keys: Path, tmp_path: Path, admit: Callable[..., None]
) -> None:
    state, given = tmp_path / "state", tmp_path / "given"
    (state / "backups").mkdir(parents=True)
    (state / "backups" / "r1.bytes").write_text("correct-horse")
    given.mkdir()
    (given / "link").symlink_to(keys)
    (given / "folder").symlink_to(state)
    os.link(keys, given / "hard")
    (given / "fine").write_text("correct-horse")
    admit("/", keys.parent, given, state)
    assert read(f"file:{given}/fine") == "correct-horse"
    for path in (keys, given / "link", given / "hard", f"{given}/../longshore/keys.json", f"/proc/self/root{keys}",
                 state / "backups/r1.bytes", given / "folder/backups/r1.bytes", f"//{state}/backups/r1.bytes",
                 "/proc/self/environ", f"/proc/{os.getpid()}/environ", "/proc/1/environ", "/dev/fd/0", "/dev/stdin",
                 "/proc/self/fd/0", "/proc/thread-self/environ", "/sys/kernel/uevent_helper"):  # fmt: skip
        with pytest.raises(NotAllowed):
            read(f"file:{path}")


def test_secret_beside_the_keys_needs_its_folder_listed(keys: Path, admit: Callable[..., None]) -> None:
    (keys.parent / "db").write_text("correct-horse")
    admit(keys.parent.parent)
    with pytest.raises(NotAllowed):
        read(f"file:{keys.parent}/db")
    admit(keys.parent)
    assert read(f"file:{keys.parent}/db") == "correct-horse"


def test_configuration_file_is_not_a_plan_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, admit: Callable[..., None]
) -> None:
    config = tmp_path / "longshore.yaml"
    config.write_text("namespace: shop\n")
    monkeypatch.setenv("LONGSHORE_CONFIG", str(config))
    admit(tmp_path)
    with pytest.raises(NotAllowed):
        read(f"file:{config}")
