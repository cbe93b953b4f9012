"""Settings: precedence of flag, environment, file and default, and errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from longshore.orchestration import ConfigError, Settings
from longshore.orchestration.settings import get_settings, load_settings


@pytest.fixture(autouse=True)
def nothing_set(own_settings: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LONGSHORE_REDIS_URL")
    monkeypatch.delenv("LONGSHORE_STATE_DIR")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))


def config(monkeypatch: pytest.MonkeyPatch, path: Path, text: str) -> None:
    path.write_text(text)
    monkeypatch.setenv("LONGSHORE_CONFIG", str(path))


def test_every_setting_has_a_default(tmp_path: Path) -> None:
    settings = load_settings()

    assert settings.redis_url is None
    assert settings.namespace == "longshore"
    assert settings.state_dir == tmp_path / "xdg" / "longshore"
    assert settings.lease == 15.0
    assert settings.step_timeout == 3600.0
    assert settings.claim_timeout == 600.0
    assert settings.concurrency >= 4


@pytest.mark.parametrize(
    ("name", "text"), [("c.yaml", "lease: 3s\nplans: /a\n"), ("c.toml", 'lease = "3s"\nplans = "/a"\n')]
)
def test_settings_precedence_is_flag_environment_file_default(
    name: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_settings().lease == 15.0

    config(monkeypatch, tmp_path / name, text)
    assert (load_settings().lease, load_settings().plans) == (3.0, "/a")

    monkeypatch.setenv("LONGSHORE_LEASE", "500ms")
    assert (load_settings().lease, load_settings().plans) == (0.5, "/a")

    assert load_settings(lease=7, plans=None).lease == 7.0


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("LEASE", "soon", "'soon' is not a duration"),
        ("LEASE", "-1", "is not a duration"),
        ("MAX_QUEUED", "0", "greater than or equal to 1"),
        ("CONCURRENCY", "many", ""),
        ("CONCURRENCY", "0", ""),
        ("NAMESPACE", "two words", ""),
        ("NAMESPACE", "a:b", ""),
        ("NAMESPACE", "a\n", ""),
    ],
)
def test_invalid_setting_is_named_with_a_remedy(
    name: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"LONGSHORE_{name}", value)

    with pytest.raises(ConfigError) as caught:
        load_settings()

    assert caught.value.exit_code == 2
    assert str(caught.value).startswith(f"setting {name.lower()}: ")
    assert says in str(caught.value)
    assert f"LONGSHORE_{name}" in caught.value.remedy
    assert len(str(caught.value).splitlines()) == 1


DURATIONS = [name for name, field in Settings.model_fields.items() if isinstance(field.default, float)]


@pytest.mark.parametrize("name", [*DURATIONS, "orchestrate_every"])
def test_only_a_delay_may_be_zero(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"LONGSHORE_{name.upper()}", "0s")

    if name in {"fast_retry", "retry_spread"}:
        assert getattr(load_settings(), name) == 0
    else:
        with pytest.raises(ConfigError, match=rf"setting {name}: .*greater than 0"):
            load_settings()


def test_missing_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGSHORE_CONFIG", str(tmp_path / "nope.yaml"))

    with pytest.raises(ConfigError, match=r"configuration file .*nope\.yaml does not exist"):
        load_settings()


def test_invalid_setting_in_a_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config(monkeypatch, tmp_path / "c.yaml", "lease: soon\n")

    with pytest.raises(ConfigError, match=r"setting lease: .*'soon' is not a duration"):
        load_settings()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("broken.yaml", b"a: [\n"),
        ("broken.toml", b"a = [\n"),
        ("deep.yaml", b"a: " + b"[" * 700 + b"]" * 700),
        ("deep.toml", b"a = " + b"[" * 700 + b"]" * 700),
        ("list.yaml", b"- a\n"),
        ("latin.yaml", b"actor: caf\xe9\n"),
        ("latin.toml", b'actor = "caf\xe9"\n'),
    ],
)
def test_unreadable_settings_file_is_a_config_error(
    name: str, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_bytes(content)
    monkeypatch.setenv("LONGSHORE_CONFIG", str(tmp_path / name))

    with pytest.raises(ConfigError) as caught:
        load_settings()

    assert str(tmp_path / name) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("schedule", "says"),
    [
        ('"night ly": {plan: p, every: 5s}', "setting schedules.night ly: "),
        ("a@b: {plan: p, every: 5s}", "setting schedules.a@b: "),
        ("a: {plan: p, cron: '61 * * * *'}", "setting schedules.a.cron: '61 * * * *' is not a valid schedule"),
        ("a: {plan: p, cron: '@daily', every: 5s}", "setting schedules.a: give either cron or every"),
        ("a: {plan: p, evry: 5s}", "setting schedules.a.evry: unknown setting"),
    ],
)
def test_invalid_schedule_setting_is_named(
    schedule: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config(monkeypatch, tmp_path / "c.yaml", f"schedules: {{{schedule}}}\n")

    with pytest.raises(ConfigError) as caught:
        load_settings()

    assert str(caught.value).startswith(says)
    assert "LONGSHORE_" not in caught.value.remedy


def test_unknown_setting_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config(monkeypatch, tmp_path / "c.yaml", "leese: 3s\n")

    with pytest.raises(ConfigError, match="leese"):
        load_settings()


def test_empty_variable_is_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REDIS_URL", "ACTOR", "CONCURRENCY"):
        monkeypatch.setenv(f"LONGSHORE_{name}", "")

    settings = load_settings()

    assert (settings.redis_url, settings.actor) == (None, None)


@pytest.mark.parametrize(
    ("settings", "url", "broker", "prefix"),
    [
        ({"redis_url": "redis://h:1/2"}, "redis://h:1/2", "redis://h:1/2", ""),
        ({"redis_url": "rediss://u:p@h/0"}, "rediss://u:p@h/0", "rediss://u:p@h/0", ""),
        ({"redis_url": "unix:///run/r.sock"}, "unix:///run/r.sock", "redis+socket:///run/r.sock", ""),
        ({"state_dir": "/s"}, "unix:///s/redis.sock", "redis+socket:///s/redis.sock", ""),
        ({"redis_url": "redis://h", "namespace": "two"}, "redis://h", "redis://h", "two:"),
    ],
)
def test_client_and_broker_use_the_same_server(settings: dict[str, Any], url: str, broker: str, prefix: str) -> None:
    made = load_settings(**settings)

    assert (made.url(), made.broker_url(), made.broker_prefix()) == (url, broker, prefix)


def test_state_folder_is_absolute_and_expands_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    assert load_settings(state_dir="here").state_dir == tmp_path / "here"
    assert load_settings(state_dir="~/there").state_dir == tmp_path / "home" / "there"


def test_settings_are_cached_and_immutable() -> None:
    settings = get_settings()

    assert get_settings() is settings
    with pytest.raises(ValueError, match="frozen"):
        settings.lease = 3.0  # type: ignore[misc]


def test_every_setting_has_a_variable() -> None:
    assert {f"LONGSHORE_{name.upper()}" for name in Settings.model_fields} >= {
        *("LONGSHORE_REDIS_URL", "LONGSHORE_NAMESPACE", "LONGSHORE_STATE_DIR", "LONGSHORE_PLANS", "LONGSHORE_ACTOR"),
    }


def test_misspelt_variable_is_reported_with_the_nearest_name(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("MAX_RUN", "SECRET_LABEL", "STACK", "SHOP_COLOUR"):
        monkeypatch.setenv(f"LONGSHORE_{name}", "1")
    get_settings.cache_clear()

    assert get_settings().max_runs is None
    assert caplog.messages == ["LONGSHORE_MAX_RUN is no setting and has no effect: did you mean LONGSHORE_MAX_RUNS?"]
