"""`node.*` agrees with the tools of the system."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

import pytest

from longshore.orchestration.errors import Preflight
from longshore.tasks.operations import node
from tests.unit.tasks.operations.fake_step import Doing

assert node


def look(name: str, **params: str) -> dict[str, object]:
    doing = Doing(f"node.{name}.get", **params)
    assert doing.predict().changed is False
    outcome = doing.act()
    assert not outcome.changed
    assert not doing.undo().changed
    return doing.outcome.data if doing.outcome else {}


def test_node_name_and_system_come_from_uname() -> None:
    assert look("hostname")["hostname"] == os.uname().nodename
    found = look("os")
    assert (found["kernel"], found["architecture"]) == (os.uname().release, os.uname().machine)
    assert found["distribution"] == platform.freedesktop_os_release()["ID"]


def test_disks_come_from_df() -> None:
    disks = look("disk")["disks"]
    assert isinstance(disks, list)
    root = next(disk for disk in disks if disk["mount"] == "/")
    usage = shutil.disk_usage("/")
    assert root["total"] == usage.total
    assert abs(root["available"] - usage.free) < 1 << 28
    assert look("disk", path="/")["disks"][0]["mount"] == "/"  # type: ignore[index]
    with pytest.raises(Preflight):
        Doing("node.disk.get", path="/no/such/path").act()


def test_memory_uptime_and_load_come_from_proc() -> None:
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert look("memory")["total"] == total
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    assert abs(float(str(look("uptime")["uptime_s"])) - uptime) < 5
    load = look("load")
    assert load["cpus"] == os.cpu_count()
    assert float(str(load["load1"])) >= 0


def test_status_combines_all_node_facts() -> None:
    assert look("status").keys() == {"hostname", "os", "uptime_s", "load", "memory", "disks"}
