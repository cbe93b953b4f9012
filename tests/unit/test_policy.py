"""What a worker may do at all: its settings' lists, whatever a plan says."""

from __future__ import annotations

import base64
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from click.testing import CliRunner

from longshore.orchestration import Plan, acl, signing
from longshore.orchestration.cli.main import cli
from longshore.orchestration.denied import denied
from longshore.orchestration.errors import ConfigError, NotAllowed, PlanDenied
from longshore.orchestration.settings import Settings, get_settings
from longshore.tasks import policy


def given(monkeypatch: pytest.MonkeyPatch, **settings: str) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(f"LONGSHORE_{name.upper()}", value)
    get_settings.cache_clear()


@pytest.mark.parametrize("source", ["/", "//", "/srv/..", "/./", "/var/run/docker.sock", "/run/docker.sock"])
def test_what_is_root_on_the_host_is_not_given_to_a_container(source: str) -> None:
    with pytest.raises(NotAllowed, match="root on the host"):
        policy.check_bind(source)


def test_binds_are_those_below_the_roots_that_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, allowed_binds="/srv:/data")
    policy.check_bind("/srv/shop")
    policy.check_bind("/data")
    for other in ("/srv/../etc", "/srvx", "/etc", "/", "relative"):
        with pytest.raises(NotAllowed, match="LONGSHORE_ALLOWED_BINDS"):
            policy.check_bind(other)
    given(monkeypatch, allowed_binds="/")
    policy.check_bind("/")


@pytest.mark.parametrize(
    "said",
    [
        {"privileged": True},
        {"cap_add": ["SYS_ADMIN"]},
        {"cap_add": ["cap_all"]},
        {"devices": [{"source": "/dev/sda", "target": "/dev/sda"}]},
        {"pid": "host"},
        {"ipc": "host"},
        {"userns_mode": "host"},
        {"security_opt": ["seccomp:unconfined"]},
        {"security_opt": ["apparmor=unconfined"]},
    ],
)
def test_no_service_is_privileged_unless_the_worker_allows_it(
    said: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotAllowed, match="no privileged containers"):
        policy.check_service("shop/web", said)
    given(monkeypatch, allow_privileged="true")
    policy.check_service("shop/web", said)


def test_an_ordinary_service_is_as_before() -> None:
    mounts = [{"type": "bind", "source": "/srv/shop"}, {"type": "volume", "source": "data"}]
    said: dict[str, Any] = {"image": "shop:1", "cap_add": ["NET_BIND_SERVICE"], "network_mode": "host"}
    policy.check_service("shop/web", said | {"security_opt": ["no-new-privileges"], "volumes": mounts})
    with pytest.raises(NotAllowed):
        policy.check_service("shop/web", {"volumes": [{"type": "bind", "source": "/"}]})
    with pytest.raises(NotAllowed):
        policy.check_container({"Image": "a", "HostConfig": {"Binds": ["/:/host:ro"]}})
    with pytest.raises(NotAllowed):
        policy.check_container({"Image": "a", "HostConfig": {"Privileged": True}})
    policy.check_container({"Image": "a", "HostConfig": {"Binds": ["data:/host"]}})


def test_operations_images_and_hosts_are_those_that_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, allowed_operations="noop.*, docker.start.execute", allowed_images="shop*", allowed_hosts="*.lan")
    policy.check_operation("noop.execute")
    policy.check_image("shop:1")
    policy.check_host("http://db.lan:80/x")
    for check in (
        lambda: policy.check_operation("docker.stop.execute"),
        lambda: policy.check_image("other/shop"),
        lambda: policy.check_host("http://db.lan.evil.example/"),
        lambda: policy.check_host("http://169.254.169.254/latest"),
        lambda: policy.check_host("http://db.lan@evil.example/"),
    ):
        with pytest.raises(NotAllowed):
            check()


# --- keys -------------------------------------------------------------------------------------------


def parts(**changes: Any) -> tuple[dict[str, Any], list[Any]]:
    return {"task": "longshore.step", "id": "a", "root_id": "run", "retries": 0} | changes, [["run", 0], {}, {}]


def raw(body: list[Any]) -> bytes:
    return json.dumps(body).encode()


def signed(ring: signing.Ring, headers: dict[str, Any], body: list[Any], plan: str = "p") -> dict[str, Any]:
    made = signing.sign(ring, "message", signing._parts(headers, raw(body), plan))
    return headers | {signing.FIELD: made | {"plan": plan}}


@pytest.mark.parametrize(
    "change",
    [{"task": "longshore.undo"}, {"id": "b"}, {"root_id": "x"}, {"retries": 1}, {"eta": "2030-01-01T00:00:00"}],
)
def test_whatever_of_a_message_is_changed_its_signature_does_not_fit_any_more(change: dict[str, Any]) -> None:
    ring = signing.Ring((signing.new_key("worker"),))
    headers, body = parts()
    good = signed(ring, headers, body)
    signing.check_message(ring, good, raw(body))
    with pytest.raises(signing.Forged, match="changed"):
        signing.check_message(ring, good | change, raw(body))
    for other in (
        [["run", 1], {}, {}],
        [["other", 0], {}, {}],
        [["run", 0], {"x": 1}, {}],
        [["run", 0], {}, {"chord": 1}],
    ):
        with pytest.raises(signing.Forged, match="changed"):
            signing.check_message(ring, good, raw(other))
    field = good[signing.FIELD]
    with pytest.raises(signing.Forged, match="changed"):
        signing.check_message(ring, good | {signing.FIELD: field | {"plan": "other"}}, raw(body))
    with pytest.raises(signing.Forged, match="not known"):
        signing.check_message(signing.Ring((signing.new_key("worker"),)), good, raw(body))


def test_a_signature_counts_for_a_time_only(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = signing.Ring((signing.new_key("worker"),))
    headers, body = parts()
    good = signed(ring, headers, body)
    now = signing.time.time()
    for later in (signing.LASTS + 10, -1000):
        monkeypatch.setattr(signing.time, "time", lambda later=later: now + later)
        with pytest.raises(signing.Forged, match="too old, or of a time"):
            signing.check_message(ring, good, raw(body))


def test_a_new_key_signs_from_its_time_on_and_the_one_before_is_known_until_all_has_arrived() -> None:
    keys = signing.rotated([signing.new_key("worker"), signing.new_key("client")], now=1000.0, after=100.0)
    ring = signing.Ring(tuple(keys))
    old, new = [key for key in keys if key.role == "worker"]
    assert ring.signing(1050.0) == old
    assert ring.signing(1101.0) == new
    assert ring.find(old.id, 1101.0 + signing.LASTS) == old
    assert ring.find(old.id, 1101.0 + signing.KEPT) is None
    again = signing.rotated(keys, now=1101.0 + 2 * signing.KEPT, after=0.0)
    assert {key.id for key in again} & {old.id} == set()


def test_init_makes_all_secrets_once_for_their_owner_alone(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "secrets"
    said = CliRunner().invoke(cli, ["init", str(folder), "--queue", "billing"])
    assert said.exit_code == 0, said.output
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    assert set(files) == {"worker/keys.json", "client/keys.json", "redis/users.acl", "env"}
    assert {oct(path.stat().st_mode & 0o777) for path in files.values()} == {"0o600"}
    users = (folder / "redis/users.acl").read_text()
    assert users.splitlines()[0].startswith("user default off")
    assert {f"user longshore-{role} on" in users for role in acl.ROLES} == {True}
    assert "~billing" in users
    environment = (folder / "env").read_text()
    password = environment.partition("longshore-client:")[2].partition("@")[0]
    assert password not in users  # a digest of it is
    assert signing.read(folder / "worker/keys.json").role == "worker"
    assert signing.read(folder / "client/keys.json").role == "client"

    before = {name: path.read_bytes() for name, path in files.items()}
    again = CliRunner().invoke(cli, ["init", str(folder)])
    assert "already" in str(again.exception)
    assert "--after" in str(CliRunner().invoke(cli, ["init", str(folder), "--rotate", "--after", "xyz"]).exception)
    rehearsed = CliRunner().invoke(cli, ["--dry-run", "init", str(folder), "--rotate"])
    assert "would write" in rehearsed.output
    assert {name: path.read_bytes() for name, path in files.items()} == before
    assert CliRunner().invoke(cli, ["init", str(folder), "--rotate"]).exit_code == 0
    assert len(json.loads((folder / "worker/keys.json").read_text())["keys"]) == 4
    assert (folder / "redis/users.acl").read_bytes() == before["redis/users.acl"]

    (folder / "worker/keys.json").chmod(0o644)
    with pytest.raises(ConfigError, match="can be read by others"):
        signing.ring(Settings(keys=str(folder / "worker/keys.json")))


@pytest.mark.parametrize(
    "source",
    [
        "/var/run",
        "/run",
        "/var",
        "//var/run/docker.sock",
        "/proc/1/root",
        "/etc",
        "/etc/",
        "/var/lib/docker/volumes",
        "/dev",
    ],
)
def test_nor_what_leads_to_it(source: str) -> None:
    with pytest.raises(NotAllowed, match="root on the host"):
        policy.check_bind(source)
    for fine in ("/etc/localtime", "/srv/shop", "/var/lib/longshore", "/home/me/shop", "./relative", "data"):
        policy.check_bind(fine)


@pytest.mark.parametrize(
    "said",
    [
        {"services": {"a": {"use_api_socket": True}}},
        {"services": {"a": {"volumes_from": ["container:longshore-engine-1"]}}},
        {"services": {"a": {"provider": {"type": "evil"}}}},
        {"services": {"a": {"post_start": [{"command": ["true"], "privileged": True}]}}},
        {"services": {"a": {"build": {"context": ".", "privileged": True}}}},
        {"services": {"a": {"gpus": "all"}}},
        {"services": {"a": {"device_cgroup_rules": ["a *:* rwm"]}}},
        {"services": {"a": {"pid": "container:other"}}},
        {"services": {"a": {"cap_add": ["DAC_READ_SEARCH"]}}},
        {"volumes": {"v": {"driver_opts": {"type": "none", "o": "bind", "device": "/"}}}},
        {"secrets": {"s": {"file": "/var/run/docker.sock"}}},
        {"configs": {"c": {"file": "/etc/../proc/1/environ"}}},
    ],
)
def test_no_other_way_of_compose_leads_there(said: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotAllowed):
        policy.check_project("shop", said)
    policy.check_project("shop", {
        "services": {"a": {"image": "a", "cap_add": ["NET_BIND_SERVICE"], "pre_stop": [{"command": ["true"]}]}},
        "volumes": {"v": None, "nfs": {"driver_opts": {"type": "nfs", "device": ":/export"}}},
        "secrets": {"s": {"file": "/srv/shop/secret"}, "e": {"environment": "X"}},
    })  # fmt: skip
    given(monkeypatch, allowed_images="shop/*")
    with pytest.raises(NotAllowed, match="ALLOWED_IMAGES"):
        policy.check_project("shop", {"services": {"a": {"build": {"context": "."}}}})


def test_a_message_that_is_none_of_ours_or_has_more_sent_after_it_is_refused() -> None:
    worker, client = signing.Ring((signing.new_key("worker"),)), signing.Ring((signing.new_key("client"),))
    both = signing.Ring((*worker.keys, *client.keys))
    headers, body = parts(task="celery.group")
    with pytest.raises(signing.Forged, match="no task of Longshore's"):
        signing.check_message(both, signed(worker, headers, body), raw(body))
    headers, _ = parts(task="longshore.advance")
    for follow_up in ("callbacks", "errbacks", "chain", "chord"):
        more = [["run"], {}, {follow_up: [{"task": "longshore.undo"}]}]
        with pytest.raises(signing.Forged, match="sent after it"):
            signing.check_message(both, signed(client, headers, more), raw(more))
        signing.check_message(both, signed(worker, headers, more), raw(more))


@pytest.mark.parametrize(
    ("name", "value", "refused"),
    [
        ("DB_PASSWORD", "hunter22", True),
        ("AWS_SECRET_ACCESS_KEY", "x", True),
        ("SECRET_KEY", "x", True),
        ("PASSWORD_1", "x", True),
        ("DB_PASSWORD", "{{ params.pw }}", True),
        ("DB_PASSWORD", "{{ secret('env:X') }}", False),
        ("DB_PASSWORD", "", False),
        ("POSTGRES_PASSWORD_FILE", "/run/secrets/db", False),
        ("TOKEN_TTL", "60", False),
        ("COLOUR", "blue", False),
    ],
)
def test_secrets_are_demanded_as_references_by_their_names(name: str, value: str, refused: bool) -> None:
    plan = Plan("p", params={"pw": str})
    plan.step("a", "command.exec.execute", argv=["true"], env={name: value})
    if refused:
        with pytest.raises(PlanDenied, match="in clear"):
            denied(plan, Settings())
        denied(plan, Settings(clear_secrets="allow"))
    else:
        denied(plan, Settings())


def test_a_body_is_not_read_before_its_signature_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = signing.Ring((signing.new_key("worker"),))
    headers, body = parts()
    monkeypatch.setattr(signing.json, "loads", lambda _: pytest.fail("it was read"))
    with pytest.raises(signing.Forged):
        signing.check_message(ring, signed(ring, headers, body), b"{ no JSON")


def test_a_message_is_signed_as_the_bytes_that_kombu_sends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text(signing.written([signing.new_key("worker")]))
    keys.chmod(0o600)
    given(monkeypatch, keys=str(keys))
    app = Celery(broker="memory://", set_as_current=False)
    app.conf.task_serializer = "json"

    app.send_task("longshore.step", args=("run", 0), kwargs={"when": datetime(2026, 1, 1), "ü": "ß"}, queue="signed")

    with app.connection() as connection:
        sent = connection.default_channel._get("signed")
    ring = signing.read(keys)
    body = base64.b64decode(sent["body"])
    headers = json.loads(json.dumps(sent["headers"]))
    assert signing.check_message(ring, headers, body) is None
    with pytest.raises(signing.Forged, match="changed"):
        signing.check_message(ring, headers, body + b" ")


def test_a_request_is_not_read_before_its_signature_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text(signing.written([signing.new_key("client")]))
    keys.chmod(0o600)
    given(monkeypatch, keys=str(keys))
    ring = signing.read(keys)
    text = signing.sealed(get_settings(), "request", "run", '{"plan": 1}')
    line = text.partition("\n")[0]

    assert signing.check_text(ring, "request", "run", text).role == "client"
    assert signing.opened(text) == ('{"plan": 1}', line)
    for other in (
        '{"plan": 1}',
        f'{line}\n{{"plan": 2}}',
        f'{line}\n{{"plan":1}}',
        "\n",
        "[" * 100_000 + "\n",
        f"{line}\n",
    ):
        with pytest.raises(signing.Forged):
            signing.check_text(ring, "request", "run", other)
    for use, name in (("request", "other"), ("probe", "run")):
        with pytest.raises(signing.Forged, match="changed"):
            signing.check_text(ring, use, name, text)


@pytest.mark.parametrize(
    "field",
    [
        None,
        [],
        "x",
        {},
        {"key": 1},
        {"key": "k", "at": "x"},
        {"at": float("nan")},
        {"mac": "ü"},
        {"at": True},
        {"plan": {}},
    ],
)
def test_a_signature_of_any_shape_is_refused(field: Any) -> None:
    ring = signing.Ring((signing.new_key("worker"),))
    headers, body = parts()
    good = signed(ring, headers, body)[signing.FIELD]
    wrong = good | field if isinstance(field, dict) else field
    with pytest.raises(signing.Forged):
        signing.check_message(ring, headers | {signing.FIELD: wrong if field != {} else {}}, raw(body))


def test_a_command_of_any_size_is_refused_before_it_is_read() -> None:
    ring = signing.Ring((signing.new_key("client"),))
    with pytest.raises(signing.Forged, match="characters"):
        signing.check_command(ring, "run", {"kind": "cancel", "reason": "x" * 100_000})
