"""Permissions of the Redis users: each command of the server for each role, by ACL DRYRUN."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from longshore.orchestration.errors import StoreUnavailable
from longshore.orchestration.installation import acl, integrity
from longshore.orchestration.installation.doctor import examine
from longshore.orchestration.settings import Settings
from longshore.orchestration.store import lua
from longshore.orchestration.store.admission import Admission, AdmissionRequest
from longshore.orchestration.store.run_store import Store
from tests.servers import RedisServer

SPACE = "acl"
PASSWORDS = {role: f"{role}-password" for role in acl.ROLES}
#: Commands that Redis permits to every user, or answers before authentication.
_EVERYBODYS = {"auth", "hello", "quit", "reset"}
#: Commands forbidden to clients: each one disturbs other users, shows their data, or runs code.
_NEVER = (
    "KEYS", "SCAN", "RANDOMKEY", "CLIENT|LIST", "CLIENT|KILL", "CLIENT|PAUSE", "CLIENT|NO-EVICT", "CLIENT|REPLY",
    "CLIENT|TRACKING", "CLIENT|UNBLOCK", "EVAL", "EVAL_RO", "EVALSHA_RO", "FCALL", "FCALL_RO", "FUNCTION|LOAD",
    "SCRIPT|LOAD", "SCRIPT|FLUSH", "SCRIPT|KILL", "FLUSHALL", "FLUSHDB", "SWAPDB", "CONFIG|GET", "CONFIG|SET", "DEBUG",
    "MONITOR", "SHUTDOWN", "SAVE", "BGSAVE", "BGREWRITEAOF", "REPLICAOF", "MIGRATE", "RESTORE", "DUMP", "RENAME",
    "COPY", "MOVE", "SORT", "OBJECT|ENCODING", "MEMORY|USAGE", "SLOWLOG|GET", "LATENCY|LATEST", "ACL|SETUSER",
    "ACL|LIST", "ACL|LOG", "MODULE|LOAD", "BRPOP", "RPUSH", "RPOP", "PUBLISH", "SUBSCRIBE", "PSUBSCRIBE",
    "INFO", "COMMAND", "LOLWUT", "SETRANGE", "BITFIELD", "XGROUP|CREATE", "XTRIM", "LMPOP",
)  # fmt: skip

_CALLED_ON = re.compile(r"\b(?:pipe|reads|writes|waiting|_?client)\.([a-z_]+)\b")
_CALL = re.compile(r"redis\.p?call\(\s*['\"]([a-zA-Z]+)['\"]")
#: Methods of redis-py whose command has another name; and methods that are no command, or that only an embedded
#: server or a permitted doctor needs.
_CALLED = {
    "pubsub_numpat": "pubsub|numpat",
    "delete": "del",
    "script_load": "script|load",
    "script_exists": "script|exists",
    "scan_iter": "scan",
    "hscan_iter": "hscan",
    "incr": "incrby",
    "decr": "decrby",
}
_NONE = {
    "append", "client", "close", "config_get", "connection_pool", "execute", "lock", "parse_response", "pipeline",
    "register_script", "set_response_callback", "shutdown",
}  # fmt: skip


def commands_of_scripts() -> set[str]:
    texts = [*map(lua.source, lua.names()), *map(lua.installation_source, ("submit", "admit"))]
    return {name.lower() for text in texts for name in _CALL.findall(text)}


def commands_of_the_store() -> set[str]:
    """The Redis commands that the store calls on a client or a pipeline."""
    root, found = Path(str(lua.__file__)).resolve().parents[3], set[str]()
    for folder in ("orchestration", "tasks", "workers"):
        for path in (root / folder).rglob("*.py"):
            found.update(_CALLED_ON.findall(path.read_text()))
    return {_CALLED.get(name, name) for name in found - _NONE if hasattr(redis.Redis, name)}


@pytest.fixture
def admin(server: RedisServer) -> Iterator[redis.Redis]:
    """The server with the users that `longshore init` writes."""
    client = server.client()
    for line in acl.users(Settings(namespace=SPACE), PASSWORDS).splitlines()[1:]:
        _, name, *rules = line.split()
        client.execute_command("ACL", "SETUSER", name, "reset", *rules)
    yield client
    for role in acl.ROLES:
        client.acl_deluser(f"longshore-{role}")


def may(admin: redis.Redis, role: str, command: str) -> bool:
    """Report, by ACL DRYRUN with forbidden keys, whether the command itself is allowed."""
    words = command.split("|")
    answer = ""
    for count in range(8):  # until the number of arguments is correct
        try:
            answer = str(admin.execute_command("ACL", "DRYRUN", f"longshore-{role}", *words, *["0"] * count))
        except redis.ResponseError as error:
            answer = str(error)
        if "wrong number" not in answer.lower():
            break
    return "permissions to run" not in answer


@pytest.mark.parametrize("role", acl.ROLES)
def test_role_may_call_exactly_its_listed_commands(admin: redis.Redis, role: str) -> None:
    commands = {str(name).lower() for name in admin.execute_command("COMMAND LIST")}
    assert len(commands) > 200
    containers = {name.partition("|")[0] for name in commands if "|" in name}
    allowed = {name for name in commands - containers if may(admin, role, name)}
    assert allowed - _EVERYBODYS == acl.COMMANDS[role]


def test_client_may_not_call_dangerous_commands(admin: redis.Redis) -> None:
    assert [command for command in _NEVER if may(admin, "client", command.lower())] == []


def test_acl_lines_name_no_category() -> None:
    assert "+@" not in acl.users(Settings(), PASSWORDS)


def test_worker_may_call_every_command_of_scripts_and_store() -> None:
    """An unlisted command would fail only in an installation with Redis users."""
    assert commands_of_scripts() <= acl.COMMANDS["worker"]
    assert commands_of_the_store() <= acl.COMMANDS["worker"]


def as_role(server: RedisServer, role: str, **more: Any) -> Store:
    url = acl.url(role, PASSWORDS[role], server.url)
    return Store(Settings(redis_url=url, namespace=SPACE, **more))


def request(name: str = "p") -> dict[str, Any]:
    return {"plan": {"name": name}, "digest": "d"}


@pytest.mark.usefixtures("admin")
def test_client_can_only_call_scripts_loaded_by_workers(server: RedisServer) -> None:
    admin, client = server.client(), as_role(server, "client", connect_timeout=0.2)
    admin.script_flush()
    with pytest.raises(redis.exceptions.NoPermissionError):
        client.client.eval("while true do end", 0)
    with pytest.raises(redis.exceptions.NoPermissionError):
        client.client.script_load("while true do end")
    with pytest.raises(StoreUnavailable, match="does not know the scripts of this version") as refused:
        Admission(client).submit("r", request())
    assert "start a worker" in str(refused.value)
    worker = as_role(server, "worker")
    assert worker.load_scripts()
    assert not worker.load_scripts()
    assert Admission(client).submit("r", request()) is None
    assert client.body("r") == request()


@pytest.mark.usefixtures("admin")
@pytest.mark.parametrize("role", ["flower", "operator"])
def test_control_clients_may_release_the_broker_lock(server: RedisServer, role: str) -> None:
    """kombu acquires the lock in each consumer; a lock held until its expiry delays the restore of lost messages."""
    server.client().script_flush()
    as_role(server, "worker").load_scripts()
    lock = as_role(server, role).client.lock(f"{SPACE}:unacked_mutex", timeout=60)
    assert lock.acquire(blocking=False)
    lock.release()
    assert server.client().exists(f"{SPACE}:unacked_mutex") == 0


@pytest.mark.usefixtures("admin")
def test_client_waits_for_a_worker_to_reload_scripts(server: RedisServer) -> None:
    client, worker = as_role(server, "client", connect_timeout=30.0), as_role(server, "worker")
    server.client().script_flush()
    asked = threading.Event()
    load = client._load

    def load_and_signal(*given: Any) -> None:
        load(*given)
        asked.set()

    client._load = load_and_signal  # type: ignore[method-assign]
    thread = threading.Thread(target=lambda: Admission(client).submit("r", request()))
    thread.start()
    assert asked.wait(30)
    assert client.body("r") is None
    assert worker.load_scripts()
    thread.join(30)
    assert client.body("r") == request()


@pytest.mark.usefixtures("admin")
def test_worker_only_script_is_refused_for_a_client(server: RedisServer) -> None:
    admin, client = server.client(), as_role(server, "client")
    keys = client.keys.of("r")
    admin.hset(keys.run, mapping={"state": "running", "version": 1})
    before = admin.hgetall(keys.run)
    for text in [*map(lua.source, lua.names()), lua.installation_source("admit")]:
        sha = admin.script_load(text)
        for names in (keys.record(), [client.keys.queue, client.keys.admission_requests, client.keys.admitted]):
            with pytest.raises(redis.exceptions.ResponseError):
                client.client.evalsha(sha, len(names), *names, *["r"] * 8)
    assert admin.hgetall(keys.run) == before


@pytest.mark.usefixtures("admin")
def test_client_can_enqueue_but_not_read_messages(server: RedisServer) -> None:
    client = as_role(server, "client").client
    client.lpush(f"{SPACE}:control", "message")
    for read in (
        lambda: client.lrange(f"{SPACE}:control", 0, -1),
        lambda: client.lmpop(1, f"{SPACE}:control", direction="LEFT"),
        lambda: client.blpop([f"{SPACE}:control"], timeout=1),
    ):
        with pytest.raises(redis.exceptions.NoPermissionError):
            read()


@pytest.mark.usefixtures("admin")
def test_doctor_loads_scripts_or_reports_them_missing(server: RedisServer) -> None:
    server.client().script_flush()

    def found(role: str) -> list[str]:
        return [f"{each.grade}: {each.what}" for each in examine(as_role(server, role)) if "script" in each.what]

    (missing,) = found("operator")
    assert missing.startswith("error: the scripts that clients call are missing in Redis")
    (loaded,) = found("worker")
    assert loaded.startswith("ok")
    assert found("operator") == []


@pytest.mark.parametrize("role", sorted({*acl.ROLES} - {"client"}))
def test_doctor_examines_every_key_in_every_permitted_role(admin: redis.Redis, server: RedisServer, role: str) -> None:
    as_role(server, "worker").load_scripts()
    keys = Store(Settings(namespace=SPACE), admin).keys
    admin.hset(keys.host("web1"), mapping={"seen": 1, "queues": "docker@web1"})
    admin.zadd(keys.hosts, {"web1": 1})
    admin.sadd(keys.breakers, "bank")
    admin.sadd(keys.locks, "deploy")
    admin.hset(keys.admission_requests, "r", AdmissionRequest("p", key="k", locks=("deploy",)).text())
    admin.zadd(keys.runs, {"r": 1})
    admin.lpush(keys.of("r").run, "of another type")
    admin.acl_log_reset()

    (damaged,) = [each.what for each in examine(as_role(server, role)) if "damaged" in each.what]

    assert f"{keys.of('r').run} is a list" in damaged
    # The role needs neither command: redis-py tries to name its connections, and doctor may skip a setting.
    assert {entry["object"] for entry in admin.acl_log()} <= {"config|get", "client|setinfo"}


@pytest.mark.usefixtures("admin")
def test_worker_may_rename_keys_of_a_wrong_type(server: RedisServer) -> None:
    store, admin = as_role(server, "worker"), server.client()
    wrong = {store.keys.clock, store.keys.live, f"{store.settings.broker_prefix()}unacked"}
    for key in wrong:
        admin.set(key, "text")

    assert {each.key for each in integrity.repair(store)} == wrong
    assert integrity.clean(store) == 0
    assert integrity.wrong_keys(store) == []


@pytest.mark.parametrize("role", acl.ROLES)
def test_only_workers_may_write_run_records(admin: redis.Redis, role: str) -> None:
    store = Store(Settings(namespace=SPACE), admin)
    keys = store.keys.of("r")
    writes = [("HSET", key, "f", "v") for key in (keys.run, keys.steps)]
    writes += [("XADD", key, "*", "f", "v") for key in (keys.events, keys.log(0), store.keys.audit)]
    writes += [("ZADD", key, "1", "m") for key in (keys.leases, keys.waits, store.keys.admitted, store.keys.runs)]
    writes += [("DEL", keys.run), ("SET", store.keys.accepted("mac"), "1"), ("SET", store.keys.signing_keys, "k")]
    for words in writes:
        answer = str(admin.execute_command("ACL", "DRYRUN", f"longshore-{role}", *words))
        assert (answer == "OK") is (role == "worker"), (words, answer)


def test_monitor_can_neither_start_nor_command_runs(admin: redis.Redis) -> None:
    store = Store(Settings(namespace=SPACE), admin)
    keys = store.keys.of("r")
    for words in (
        ("SET", keys.request, "{}"), ("XADD", keys.commands, "*", "kind", "cancel"),
        ("ZADD", store.keys.inbox, "1", "r"), ("LPUSH", f"{SPACE}:control", "message"),
        ("HSET", store.keys.hosts, "f", "v"),
    ):  # fmt: skip
        assert "permissions" in str(admin.execute_command("ACL", "DRYRUN", "longshore-monitor", *words)), words


def test_worker_cannot_touch_keys_of_another_installation(admin: redis.Redis) -> None:
    own, other = Store(Settings(namespace=SPACE), admin).keys, Store(Settings(namespace="other"), admin).keys
    for keys, allowed in ((own, True), (other, False)):
        for words in (
            ("GET", keys.of("rendered").request), ("HSET", keys.of("r").run, "state", "x"), ("DEL", keys.inbox),
            ("LPUSH", f"{keys.namespace}:noop", "m"), ("BRPOP", f"{keys.namespace}:docker@web1", "1"),
        ):  # fmt: skip
            answer = str(admin.execute_command("ACL", "DRYRUN", "longshore-worker", *words))
            assert (answer == "OK") is allowed, (words, answer)


def test_clients_may_read_every_key_of_a_record(admin: redis.Redis) -> None:
    keys = Store(Settings(namespace=SPACE), admin).keys
    names = [name for name, made in vars(type(keys)).items() if isinstance(made, property)]
    assert len(names) > 20
    for role in ("client", "operator", "flower", "monitor"):
        for key in [*(getattr(keys, name) for name in names), keys.of("r").run, keys.of("r").data("s"), keys.job("j")]:
            assert admin.execute_command("ACL", "DRYRUN", f"longshore-{role}", "GET", key) in {"OK", b"OK"}, (role, key)


def test_clients_may_follow_runs(admin: redis.Redis) -> None:
    keys = Store(Settings(namespace=SPACE), admin).keys.of("r")
    for words in (
        ("XREAD", "COUNT", "1", "BLOCK", "1", "STREAMS", keys.events, keys.log(0), "0-0", "0-0"),
        ("XREVRANGE", keys.events, "+", "-", "COUNT", "1"),
        ("HGET", keys.run, "state"), ("EXISTS", keys.request),
    ):  # fmt: skip
        assert str(admin.execute_command("ACL", "DRYRUN", "longshore-client", *words)) in {"OK", "b'OK'"}, words


def test_own_queues_have_lists_for_priorities() -> None:
    plain, own = acl.queues(Settings()), acl.queues(Settings(), ["shop"])
    assert [name for name in plain if "[" in name] == []
    assert {name for name in own if name.startswith("shop")} == {"shop", "shop.undo", "shop@*", "shop??[0-9]"}
