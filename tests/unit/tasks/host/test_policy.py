"""The worker's policy: allow lists of its settings, which no plan can override."""

from __future__ import annotations

import base64
import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from click.testing import CliRunner

from longshore.orchestration import Plan
from longshore.orchestration.cli.main import cli
from longshore.orchestration.errors import ConfigError, NotAllowed, PlanDenied
from longshore.orchestration.installation import acl
from longshore.orchestration.messaging import signing
from longshore.orchestration.plans.policy import reject_forbidden
from longshore.orchestration.settings import Settings, get_settings
from longshore.tasks.host import policy
from longshore.tasks.operations.compose import reads
from longshore.tasks.operations.compose.cli import Source


def given(monkeypatch: pytest.MonkeyPatch, **settings: str) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(f"LONGSHORE_{name.upper()}", value)
    get_settings.cache_clear()


@pytest.mark.parametrize("source", ["/", "//", "/srv/..", "/./", "/var/run/docker.sock", "/run/docker.sock"])
def test_container_gets_no_host_root_privileges(source: str) -> None:
    with pytest.raises(NotAllowed, match="root access to the host"):
        policy.check_bind(source)


def test_bind_mounts_must_lie_in_the_allowed_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, allowed_binds="/srv:/data")
    policy.check_bind("/srv/shop")
    policy.check_bind("/data")
    for other in ("/srv/../etc", "/srvx", "/etc", "/", "relative"):
        with pytest.raises(NotAllowed, match="LONGSHORE_ALLOWED_BINDS"):
            policy.check_bind(other)
    given(monkeypatch, allowed_binds="/")
    policy.check_bind("/")


@pytest.mark.parametrize(
    "service",
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
def test_privileged_service_needs_the_workers_permission(
    service: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotAllowed, match="may not create privileged containers"):
        policy.check_service("shop/web", service)
    given(monkeypatch, allow_privileged="true")
    policy.check_service("shop/web", service)


def test_ordinary_service_is_allowed() -> None:
    mounts = [{"type": "bind", "source": "/srv/shop"}, {"type": "volume", "source": "data"}]
    service: dict[str, Any] = {"image": "shop:1", "cap_add": ["NET_BIND_SERVICE"], "network_mode": "host"}
    policy.check_service("shop/web", service | {"security_opt": ["no-new-privileges"], "volumes": mounts})
    with pytest.raises(NotAllowed):
        policy.check_service("shop/web", {"volumes": [{"type": "bind", "source": "/"}]})
    with pytest.raises(NotAllowed):
        policy.check_container({"Image": "a", "HostConfig": {"Binds": ["/:/host:ro"]}})
    with pytest.raises(NotAllowed):
        policy.check_container({"Image": "a", "HostConfig": {"Privileged": True}})
    policy.check_container({"Image": "a", "HostConfig": {"Binds": ["data:/host"]}})


def test_only_listed_operations_and_images_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, allowed_operations="noop.*, docker.start.execute", allowed_images="shop*")
    policy.check_operation("noop.execute")
    policy.check_image("shop:1")
    for check in (
        lambda: policy.check_operation("docker.stop.execute"),
        lambda: policy.check_image("other/shop"),
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
    [
        {"task": "longshore.undo"},
        {"id": "b"},
        {"root_id": "x"},
        {"parent_id": "x"},
        {"group": "x"},
        {"group_index": 1},
        {"retries": 1},
        {"eta": "2030-01-01T00:00:00"},
        {"expires": "2020-01-01T00:00:00"},
        {"timelimit": [0.001, None]},
        {"ignore_result": False},
        {"replaced_task_nesting": 1},
        {"stamps": {"x": 1}, "stamped_headers": ["x"]},
        {"reply_to": "elsewhere"},
        {"delivery_info": {"routing_key": "elsewhere"}},
        {"is_eager": True},
        {"longshore_advance": ["other", "plan"]},
        {"shadow": "another name"},
    ],
)
def test_any_change_to_a_message_breaks_its_signature(change: dict[str, Any]) -> None:
    ring = signing.Ring((signing.new_key("worker"),))
    headers, body = parts()
    good = signed(ring, headers, body)
    signing.check_message(ring, good, raw(body))
    signing.check_message(ring, good | {"traceparent": "00-a-b-01", "group": None}, raw(body))
    with pytest.raises(signing.Forged, match="changed"):
        signing.check_message(ring, good | change, raw(body))
    with pytest.raises(signing.Forged, match="changed"):
        signing.check_message(ring, {name: value for name, value in good.items() if name != "retries"}, raw(body))
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
    with pytest.raises(signing.Forged, match="unknown here"):
        signing.check_message(signing.Ring((signing.new_key("worker"),)), good, raw(body))


def test_signature_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = signing.Ring((signing.new_key("worker"),))
    headers, body = parts()
    good = signed(ring, headers, body)
    now = signing.time.time()
    for later in (signing.LASTS + 10, -1000):
        monkeypatch.setattr(signing.time, "time", lambda later=later: now + later)
        with pytest.raises(signing.Forged, match="too old, or dated in the future"):
            signing.check_message(ring, good, raw(body))


def test_key_rotation_accepts_the_previous_key_during_overlap() -> None:
    keys = signing.rotated([signing.new_key("worker"), signing.new_key("client")], now=1000.0, after=100.0)
    ring = signing.Ring(tuple(keys))
    old, new = [key for key in keys if key.role == "worker"]
    assert ring.signing(1050.0) == old
    assert ring.signing(1101.0) == new
    assert ring.find(old.id, 1101.0 + signing.LASTS) == old
    assert ring.find(old.id, 1101.0 + signing.KEPT) is None
    again = signing.rotated(keys, now=1101.0 + 2 * signing.KEPT, after=0.0)
    assert {key.id for key in again} & {old.id} == set()


def test_init_creates_secrets_once_with_private_modes(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "secrets"
    result = CliRunner().invoke(cli, ["init", str(folder), "--queue", "billing"])
    assert result.exit_code == 0, result.output
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    assert set(files) == {"worker/keys.json", "client/keys.json", "redis/users.acl", "env"}
    assert (folder / "plans").is_dir()
    assert {oct(path.stat().st_mode & 0o777) for path in files.values()} == {"0o600"}
    users = (folder / "redis/users.acl").read_text()
    assert users.splitlines()[0].startswith("user default off")
    assert {f"user longshore-{role} on" in users for role in acl.ROLES} == {True}
    assert "~billing" in users
    environment = (folder / "env").read_text()
    password = environment.partition("longshore-client:")[2].partition("@")[0]
    assert password not in users  # the file contains a digest of the password
    assert signing.read(folder / "worker/keys.json").role == "worker"
    assert signing.read(folder / "client/keys.json").role == "client"

    before = {name: path.read_bytes() for name, path in files.items()}
    again = CliRunner().invoke(cli, ["init", str(folder)])
    assert "already" in str(again.exception)
    assert "--after" in str(CliRunner().invoke(cli, ["init", str(folder), "--rotate", "--after", "xyz"]).exception)
    dry_run = CliRunner().invoke(cli, ["--dry-run", "init", str(folder), "--rotate"])
    assert "would write" in dry_run.output
    assert {name: path.read_bytes() for name, path in files.items()} == before
    assert CliRunner().invoke(cli, ["init", str(folder), "--rotate"]).exit_code == 0
    assert len(json.loads((folder / "worker/keys.json").read_text())["keys"]) == 4
    assert (folder / "redis/users.acl").read_bytes() == before["redis/users.acl"]

    (folder / "worker/keys.json").chmod(0o644)
    with pytest.raises(ConfigError, match="can be read by other users"):
        signing.ring(Settings(keys=str(folder / "worker/keys.json")))


def test_rotation_keeps_owner_and_mode_of_the_key_files(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    assert CliRunner().invoke(cli, ["init", str(folder)]).exit_code == 0
    path, is_root = folder / "worker/keys.json", os.geteuid() == 0
    path.chmod(0o640)
    if is_root:
        os.chown(path, 1234, 4321)
    before = path.stat()

    assert CliRunner().invoke(cli, ["init", str(folder), "--rotate"]).exit_code == 0

    after = path.stat()
    assert after.st_ino != before.st_ino
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    if is_root:
        assert CliRunner().invoke(cli, ["init", str(folder), "--rotate", "--owner", "999"]).exit_code == 0
        assert (path.stat().st_uid, path.stat().st_gid) == (999, 4321)


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
        "/etc/cron.d",
        "/etc/systemd/system",
        "/etc/shadow",
        "/etc/hosts",
        "/usr",
        "/usr/bin",
        "/usr/local/bin",
        "/bin",
        "/lib/x86_64-linux-gnu",
        "/sbin/init",
        "/var/spool/cron",
        "/var/spool/cron/crontabs",
        "/var/spool",
        "/var/lib",
        "/root/.ssh",
        "/boot/efi",
        "/sys/fs/cgroup",
        "/run/containerd/containerd.sock",
        "/run/podman/podman.sock",
        "/run/user/1000/docker.sock",
        "/var/run/crio/crio.sock",
        "/srv/sockets/docker.sock",
        "/var/lib/containers/storage",
        "/var/lib/crio",
        "/var/lib/kubelet/pods",
        "/home",
        "/home/me",
        "/home/me/.ssh",
        "/home/me/.config/systemd",
        "/home/me/.profile",
    ],
)
def test_container_gets_no_path_that_gives_root_on_the_host(source: str) -> None:
    with pytest.raises(NotAllowed, match="root access to the host"):
        policy.check_bind(source)
    for fine in ("/etc/localtime", "/srv/shop", "/var/lib/shop", "/home/me/shop", "/opt/shop", "./relative", "data"):
        policy.check_bind(fine)
    policy.check_bind("/etc/ssl/certs", read_only=True)


def test_container_gets_no_state_keys_or_engine_socket(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    keys, socket = tmp_path / "keys" / "keys.json", tmp_path / "engine" / "engine"
    given(monkeypatch, state_dir=str(tmp_path / "state"), keys=str(keys), docker_host=f"unix://{socket}")
    for closed in ("state", "state/receipts", "keys", "keys/keys.json", "engine/engine", "engine", "."):
        with pytest.raises(NotAllowed, match="root access to the host"):
            policy.check_bind(str(tmp_path / closed))
    policy.check_bind(str(tmp_path / "shop"))


def test_container_created_link_is_not_followed(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "config").symlink_to("/etc")
    with pytest.raises(NotAllowed, match="root access to the host"):
        policy.check_bind(str(tmp_path / "shop" / "config"))
    with pytest.raises(NotAllowed, match="root access to the host"):
        policy.check_bind(str(tmp_path / "shop" / "config" / "cron.d"))
    given(monkeypatch, allowed_binds=str(tmp_path / "shop"))
    policy.check_bind(str(tmp_path / "shop"))
    with pytest.raises(NotAllowed, match="ALLOWED_BINDS"):
        policy.check_bind(str(tmp_path / "shop" / "config"))


@pytest.mark.parametrize(
    ("options", "driver"),
    [
        ({"type": "overlay", "device": "overlay", "o": "lowerdir=/,upperdir=/srv/u,workdir=/srv/w"}, ""),
        ({"type": "none", "o": "bind", "device": "etc"}, ""),
        ({"o": "bind", "device": "etc"}, "local"),
        ({"type": "none", "o": "rbind", "device": "/etc"}, ""),
        ({"type": "tmpfs", "o": "bind", "device": "/etc"}, ""),
        ({"type": "nfs", "o": "bind,addr=10.0.0.1", "device": "/etc"}, ""),
        ({"type": "ext4", "device": "/dev/sda1"}, ""),
        ({"type": "btrfs", "device": "/dev/sda1", "o": "subvol=@"}, ""),
        ({"type": "proc", "device": "proc"}, ""),
        ({"type": "sysfs", "device": "sysfs"}, ""),
        ({"type": "9p", "device": "x", "o": "trans=unix"}, ""),
        ({"type": "fuse.sshfs", "device": "host:/"}, ""),
        ({"device": "etc"}, ""),
        ({"type": "tmpfs", "device": "tmpfs", "o": "size=1m,remount"}, ""),
        ({"mountpoint": "/etc"}, ""),
        ({"mountpoint": "/etc"}, "local-persist"),
        ({}, "vieux/sshfs"),
    ],
)
def test_volume_is_local_remote_or_an_allowed_bind(
    options: dict[str, str], driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for check in (
        lambda: policy.check_volume(options, driver),
        lambda: policy.check_project("shop", {"volumes": {"v": {"driver": driver, "driver_opts": options}}}),
        lambda: policy.check_container({
            "Image": "a",
            "HostConfig": {"Mounts": [{
                "Type": "volume", "VolumeOptions": {"DriverConfig": {"Name": driver, "Options": options}}
            }]},
        }),
    ):  # fmt: skip
        with pytest.raises(NotAllowed):
            check()
    for fine in (
        {},
        {"type": "none", "o": "bind", "device": "/srv/shop"},
        {"type": "tmpfs", "device": "tmpfs", "o": "size=100m,uid=1000"},
        {"type": "nfs", "o": "addr=10.0.0.1,rw,nolock", "device": ":/export"},
        {"type": "cifs", "o": "username=u,vers=3.0", "device": "//nas.lan/share"},
    ):
        policy.check_volume(fine)
    given(monkeypatch, allowed_hosts="*.lan")
    with pytest.raises(NotAllowed, match="ALLOWED_HOSTS"):
        policy.check_volume({"type": "nfs", "o": "addr=10.0.0.1", "device": ":/export"})
    policy.check_volume({"type": "cifs", "device": "//nas.lan/share"})


@pytest.mark.parametrize(
    "service",
    [
        {"security_opt": ["label:type:spc_t"]},
        {"security_opt": ["label=level:s0"]},
        {"security_opt": ["label:disable"]},
        {"security_opt": ["seccomp:{}"]},
        {"security_opt": ["apparmor:own-profile"]},
        {"security_opt": ["systempaths=unconfined"]},
        {"security_opt": ["writable-cgroups=true"]},
        {"security_opt": ["no-new-privileges:false"]},
        {"devices": ["vendor.com/gpu=all"]},
        {"runtime": "nvidia"},
        {"runtime": "sysbox-runc"},
        {"annotations": {"run.oci.handler": "krun"}},
        {"deploy": {"resources": {"reservations": {"devices": [{"driver": "cdi", "device_ids": ["a/b=c"]}]}}}},
        {"deploy": {"resources": {"reservations": {"generic_resources": [{}]}}}},
        {"cgroup": "host"},
        {"uts": "host"},
        {"ipc": "container:other"},
        {"network_mode": "container:other"},
        {"userns_mode": "keep-id"},
        {"sysctls": {"kernel.core_pattern": "|/bin/sh"}},
        {"sysctls": ["vm.overcommit_memory=1"]},
        {"cgroup_parent": "/"},
        {"credential_spec": {"file": "x"}},
        {"models": {"llm": None}},
        {"logging": {"driver": "syslog", "options": {"syslog-address": "unix:///var/run/docker.sock"}}},
        {"logging": {"driver": "vendor/plugin"}},
        {"build": {"context": "/srv/shop", "ssh": ["default"]}},
        {"build": {"context": "/srv/shop", "network": "host"}},
        {"build": {"context": "/srv/shop", "cache_to": ["type=local,dest=/etc/cron.d"]}},
        {"build": {"context": "/etc"}},
        {"build": {"context": "/srv/shop", "additional_contexts": {"x": "/root"}}},
        {"env_file": ["/proc/1/environ"]},
        {"env_file": [{"path": "/etc/shadow", "required": True}]},
        {"label_file": "/run/longshore/keys.json"},
        {"volumes": ["/etc:/host"]},
        {"something_new": True},
    ],
)
def test_unknown_service_options_are_refused(service: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotAllowed):
        policy.check_service("shop/web", {"image": "shop:1"} | service)
    ordinary = {
        "image": "shop:1", "command": ["run"], "init": True, "read_only": True, "tmpfs": ["/tmp"], "x-own": {"a": 1},
        "security_opt": ["no-new-privileges:true"], "sysctls": {"net.core.somaxconn": "1024"}, "ipc": "shareable",
        "network_mode": "service:db", "pid": "service:db", "runtime": "runc", "cap_add": ["NET_BIND_SERVICE"],
        "logging": {"driver": "json-file", "options": {"max-size": "1m"}}, "privileged": False, "devices": [],
        "deploy": {"replicas": 2, "resources": {"limits": {"cpus": "1", "memory": "64m"}}},
        "build": {"context": "/srv/shop", "dockerfile": "Dockerfile", "cache_from": ["type=registry,ref=a"]},
        "post_start": [{"command": ["true"]}], "env_file": ["/srv/shop/.env"],
    }  # fmt: skip
    policy.check_service("shop/web", ordinary)
    policy.check_project("shop", {"networks": {"default": {"driver": "bridge"}, "none": None}})
    with pytest.raises(NotAllowed):
        policy.check_project("shop", {"networks": {"default": {"driver": "vendor/plugin"}}})
    given(monkeypatch, allow_privileged="true", allowed_binds="/")
    policy.check_service("shop/web", {"image": "shop:1"} | service)


def test_service_with_a_build_is_not_a_listed_image(monkeypatch: pytest.MonkeyPatch) -> None:
    service = {"image": "shop/web", "build": {"context": "/srv/shop", "dockerfile_inline": "FROM evil"}}
    policy.check_service("shop/web", service)
    given(monkeypatch, allowed_images="shop/*")
    with pytest.raises(NotAllowed, match="LONGSHORE_ALLOWED_IMAGES is set"):
        policy.check_service("shop/web", service)
    with pytest.raises(NotAllowed, match="ALLOWED_IMAGES"):
        policy.check_service("shop/web", {"image": "shop/web", "volumes": [{"type": "image", "source": "evil"}]})
    policy.check_service("shop/web", {"image": "shop/web"})


@pytest.mark.parametrize(
    "host",
    [
        {"Privileged": True},
        {"CapAdd": ["SYS_ADMIN"]},
        {"Devices": [{"PathOnHost": "/dev/sda"}]},
        {"DeviceRequests": [{"Driver": "cdi"}]},
        {"Runtime": "nvidia"},
        {"SecurityOpt": ["label:type:spc_t"]},
        {"PidMode": "host"},
        {"VolumesFrom": ["other"]},
        {"CgroupParent": "/"},
        {"NetworkMode": "container:other"},
        {"LogConfig": {"Type": "vendor/plugin"}},
        {"Binds": ["/etc/hosts:/etc/hosts"]},
    ],
)
def test_step_container_follows_the_same_rules(host: dict[str, Any]) -> None:
    with pytest.raises(NotAllowed):
        policy.check_container({"Image": "a", "HostConfig": host})
    policy.check_container({"Image": "a", "HostConfig": {"NetworkMode": "host", "Binds": ["/etc/hosts:/etc/hosts:ro"]}})


def test_existing_volume_follows_the_rules_for_new_volumes() -> None:
    bound = {"Name": "v", "Driver": "local", "Options": {"type": "none", "o": "bind", "device": "/"}}
    own = {"Name": "longshore_redis-data", "Driver": "local", "Labels": {"com.docker.compose.project": "longshore"}}
    for found in (bound, own):
        with pytest.raises(NotAllowed):
            policy.check_existing_volume(found, "longshore")
    policy.check_existing_volume({"Name": "v", "Driver": "local", "Options": None, "Labels": None}, "longshore")
    policy.check_existing_volume(None, "longshore")


@pytest.mark.parametrize(
    "made",
    [
        {"Config": {"Labels": {"com.docker.compose.project": "longshore"}}},
        {"HostConfig": {"Privileged": True}},
        {"HostConfig": {"PidMode": "host"}},
        {"HostConfig": {"IpcMode": "host"}},
        {"HostConfig": {"CapAdd": ["CAP_SYS_ADMIN"]}},
        {"HostConfig": {"Devices": [{"PathOnHost": "/dev/sda", "PathInContainer": "/dev/sda"}]}},
        {"HostConfig": {"DeviceCgroupRules": ["b 8:* rwm"]}},
        {"HostConfig": {"SecurityOpt": ["apparmor=unconfined"]}},
        {"Mounts": [{"Type": "bind", "Source": "/var/run/docker.sock", "RW": False}]},
        {"Mounts": [{"Type": "bind", "Source": "/", "RW": False}]},
        {"Mounts": [{"Type": "bind", "Source": "/etc", "RW": False}]},
        {"Mounts": [{"Type": "bind", "Source": "/etc/cron.d", "RW": True}]},
        {"Mounts": [{"Type": "bind", "Source": "/proc", "RW": False}]},
        {"Mounts": [{"Type": "bind", "Source": "/var/lib/docker", "RW": False}]},
    ],
)
def test_exec_in_a_privileged_or_longshore_container_is_refused(made: dict[str, Any]) -> None:
    """Otherwise `docker.exec` could print the key of the engine's worker, or reach the engine's socket in a proxy."""
    with pytest.raises(NotAllowed):
        policy.check_inside("any", made, "longshore")
    for fine in (
        {"Config": {"Labels": {"com.docker.compose.project": "shop"}}, "HostConfig": {"PidMode": ""}},
        {"HostConfig": {"CapAdd": ["CAP_CHOWN"], "Devices": [], "IpcMode": "private", "SecurityOpt": None}},
        {
            "Mounts": [
                {"Type": "bind", "Source": "/srv/shop", "RW": True},
                {"Type": "volume", "Source": "/var/lib/docker"},
            ]
        },
        {"Mounts": [{"Type": "bind", "Source": "/etc/nginx", "RW": False}]},
    ):
        policy.check_inside("any", fine, "longshore")
        policy.check_inside("any", fine)


def test_compose_files_follow_the_container_path_rules(tmp_path: Any) -> None:
    secret = tmp_path / "state" / "worker.env"
    secret.parent.mkdir()
    secret.write_text("KEY=1")
    written = {
        "env_file": f"services: {{a: {{image: a, env_file: {secret}}}}}",
        "required": f"services: {{a: {{image: a, env_file: [{{path: {secret}}}]}}}}",
        "label_file": f"services: {{a: {{image: a, label_file: {secret}}}}}",
        "include": f"include: [{secret}]",
        "include's env_file": f"include: [{{path: b.yaml, env_file: {secret}}}]",
        "extends": f"services: {{a: {{extends: {{file: {secret}, service: a}}}}}}",
        "second document": f"services: {{}}\n---\ninclude: [{secret}]",
        "a variable": "services: {a: {image: a, env_file: '${WHERE}/worker.env'}}",
        "another machine": "include: ['https://example.org/evil.git']",
        "an artefact": "include: ['oci://registry.example/evil']",
    }
    get_settings.cache_clear()
    settings = get_settings().model_copy(update={"state_dir": secret.parent})
    file = tmp_path / "stack" / "compose.yaml"
    file.parent.mkdir()
    source = Source("shop", str(file.parent), (str(file),))
    with pytest.MonkeyPatch.context() as patched:
        for module in ("host.policy", "host.paths", "operations.compose.reads"):
            patched.setattr(f"longshore.tasks.{module}.get_settings", lambda: settings)
        for text in written.values():
            file.write_text(text)
            with pytest.raises(NotAllowed, match=r"may not read|is outside|cannot be checked|not a file of this host"):
                reads.check(source.directory, source.files, source.env_files)
        file.write_text("services: {a: {image: a, env_file: [a.env]}}")
        (file.parent / "a.env").write_text("A=1")
        reads.check(source.directory, source.files, source.env_files)
        with pytest.raises(NotAllowed):
            reads.check(source.directory, source.files, [str(secret)])


@pytest.mark.parametrize(
    "service",
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
def test_other_compose_features_cannot_bypass_the_rules(
    service: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotAllowed):
        policy.check_project("shop", service)
    policy.check_project("shop", {
        "services": {"a": {"image": "a", "cap_add": ["NET_BIND_SERVICE"], "pre_stop": [{"command": ["true"]}]}},
        "volumes": {"v": None, "nfs": {"driver_opts": {"type": "nfs", "device": ":/export", "o": "addr=10.0.0.5"}}},
        "secrets": {"s": {"file": "/srv/shop/secret"}, "e": {"environment": "X"}},
    })  # fmt: skip
    given(monkeypatch, allowed_images="shop/*")
    with pytest.raises(NotAllowed, match="ALLOWED_IMAGES"):
        policy.check_project("shop", {"services": {"a": {"build": {"context": "."}}}})


def test_foreign_message_or_message_with_callbacks_is_refused() -> None:
    worker, client = signing.Ring((signing.new_key("worker"),)), signing.Ring((signing.new_key("client"),))
    both = signing.Ring((*worker.keys, *client.keys))
    headers, body = parts(task="celery.group")
    with pytest.raises(signing.Forged, match="signed tasks of Longshore only"):
        signing.check_message(both, signed(worker, headers, body), raw(body))
    headers, _ = parts(task="longshore.advance")
    for follow_up in ("callbacks", "errbacks", "chain", "chord"):
        more = [["run"], {}, {follow_up: [{"task": "longshore.undo"}]}]
        with pytest.raises(signing.Forged, match="follow-up messages"):
            signing.check_message(both, signed(client, headers, more), raw(more))
        signing.check_message(both, signed(worker, headers, more), raw(more))


@pytest.mark.parametrize("name", ["callbacks", "errbacks", "chain", "chord"])
def test_application_result_message_has_no_callbacks_or_time_limit(name: str) -> None:
    """A worker would sign the callbacks of a message that any client may write."""
    ring = signing.Ring((signing.new_key("worker"),))
    headers, _ = parts(task="longshore.task_ended")
    arguments = ["result", "run", 0, "", "1", True]
    signing.check_message(ring, headers | {"timelimit": [None, None]}, raw([arguments, {"seal": {}}, {name: None}]))
    with pytest.raises(signing.Forged, match="follow-up messages"):
        signing.check_message(ring, headers, raw([arguments, {"seal": {}}, {name: [{"task": "longshore.step"}]}]))
    with pytest.raises(signing.Forged, match="time limit"):
        signing.check_message(ring, headers | {"timelimit": [0.001, None]}, raw([arguments, {"seal": {}}, {}]))


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
def test_plain_secrets_are_refused_by_parameter_name(name: str, value: str, refused: bool) -> None:
    plan = Plan("p", params={"pw": str})
    plan.step("a", "command.exec.execute", argv=["true"], env={name: value})
    if refused:
        with pytest.raises(PlanDenied, match="plaintext secret"):
            reject_forbidden(plan, Settings())
        reject_forbidden(plan, Settings(clear_secrets="allow"))
    else:
        reject_forbidden(plan, Settings())


def test_body_is_not_parsed_before_its_signature_is_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = signing.Ring((signing.new_key("worker"),))
    headers, body = parts()
    monkeypatch.setattr(signing.json, "loads", lambda _: pytest.fail("the body was parsed"))
    with pytest.raises(signing.Forged):
        signing.check_message(ring, signed(ring, headers, body), b"{ no JSON")


def test_message_signature_covers_the_bytes_that_kombu_sends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_request_is_not_parsed_before_its_signature_is_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    for use, name in (("request", "other"), ("dry_run", "run")):
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
def test_malformed_signature_is_refused(field: Any) -> None:
    ring = signing.Ring((signing.new_key("worker"),))
    headers, body = parts()
    good = signed(ring, headers, body)[signing.FIELD]
    wrong = good | field if isinstance(field, dict) else field
    with pytest.raises(signing.Forged):
        signing.check_message(ring, headers | {signing.FIELD: wrong if field != {} else {}}, raw(body))


def test_oversized_command_is_refused_before_parsing() -> None:
    ring = signing.Ring((signing.new_key("client"),))
    with pytest.raises(signing.Forged, match="characters"):
        signing.check_command(ring, "run", {"kind": "cancel", "reason": "x" * 100_000})
