"""Draws docs/screenshots: Flower's pages of six runs in Chromium, and commands of the terminal as SVG.

`make screenshots` runs the module with a Redis, a worker and Flower of its own. The plans use operations without
effects; their names, errors and data are samples.
"""

from __future__ import annotations

import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
from base64 import b64decode
from fcntl import ioctl
from itertools import product
from pathlib import Path
from termios import TIOCSWINSZ
from typing import Any

from rich.console import Console
from rich.text import Text

from longshore.orchestration import Client, Plan, Run, parse
from tests.integration.flower import Browser, Flower
from tests.integration.processes import LONGSHORE, PATIENCE, Installation, wait_for
from tests.servers import RedisServer

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "docs/screenshots"
#: Width and greatest height of a screenshot.
SIZES = {"desktop": (1280, 1700), "phone": (390, 1600)}
#: Runs with a single picture.
ONE_PICTURE = {"run-approval"}
COLUMNS = 100
RELEASE = """\
name: release
description: Bring a release of the shop into service
params:
  version: {type: string}
  env: {type: string, default: production}
  health: {type: string, default: ok}
steps:
  lock: {op: noop.execute, with: {sleep: 0.3s}}
  pull-images: {op: noop.execute, after: lock, with: {sleep: 1.4s}, undo: {op: noop.execute, with: {sleep: 0.3s}}}
  build-assets: {op: noop.execute, after: lock, with: {sleep: 0.9s}}
  backup-database: {op: noop.execute, after: pull-images, with: {sleep: 0.8s}}
  migrate:
    {op: noop.execute, after: backup-database, with: {sleep: 0.6s}, undo: {op: noop.execute, with: {sleep: 0.9s}}}
  roll-web:
    op: noop.execute
    after: [migrate, build-assets]
    with: {sleep: 1.2s}
    undo: {op: noop.execute, with: {sleep: 0.7s}}
  roll-worker: {op: noop.execute, after: [migrate, build-assets], with: {sleep: 0.7s}}
  smoke-test: {op: noop.execute, after: [roll-web, roll-worker], with: {sleep: 0.4s, changed: false}}
  announce: {op: noop.execute, after: smoke-test}
  release-notes: {op: noop.execute, after: announce, always: true, with: {changed: false}}
"""
LOCKED = "apt-get: /var/lib/dpkg/lock-frontend is held by process 4411"
STANDING = {"project": "shop", "at": 1, "healthy": True, "text": "shop is back at revision 41 (web 1.4.0), healthy"}
FAILURE = "https://shop.example/health answered 503 Service Unavailable: relation orders_v2 does not exist"


def release(*, fails: bool) -> Plan:
    text = RELEASE
    if fails:
        retry = "retry: {attempts: 3, initial: 0.4s, jitter: false}"
        text = text.replace("sleep: 0.8s", f"sleep: 0.8s, data: {{standing: [{json.dumps(STANDING)}]}}")
        text = text.replace("with: {sleep: 0.4s,", f"{retry}, with: {{sleep: 0.4s, fail: {json.dumps(FAILURE)},")
    return parse(text)


def housekeeping() -> Plan:
    """A chain whose failures do not stop it."""
    plan = Plan("housekeeping", on_error="continue", on_failure="keep", sequential=True)
    for name, seconds in (
        ("rotate-logs", 0.4), ("prune-images", 1.1), ("vacuum-database", 0.9), ("rebuild-search", 1.6),
        ("renew-certificates", 0.5), ("check-backups", 0.6), ("report", 0.2),
    ):  # fmt: skip
        missing = "the backup of 2026-11-28 is missing in s3://backups/shop"
        plan.step(name, "noop.execute", sleep=seconds, fail=missing if name == "check-backups" else False)
    return plan


def upgrade() -> Plan:
    """One run at a time, which waits for an approval."""
    plan = Plan("database-upgrade", concurrency={"key": "production-database"})
    dump = plan.step("dump", "noop.execute", sleep=0.6)
    ask = plan.approval("approve-downtime", "Stop the shop for ten minutes?", timeout="2h").after(dump)
    stop = plan.step("stop-shop", "noop.execute").after(ask)
    plan.step("upgrade", "noop.execute").after(stop)
    return plan


def fleet() -> Plan:
    """300 steps in two waves."""
    plan = Plan("fleet-update", on_error="continue", on_failure="keep", params={"package": {"type": "string"}})
    gate = plan.step("collect-hosts", "noop.execute", changed=False)
    for wave, count in (("canary", 24), ("web", 272)):
        hosts = []
        for number in range(1, count + 1):
            fail = LOCKED if (wave, number) in {("web", 88), ("web", 191)} else False
            hosts.append(plan.step(f"{wave}-{number:03}", "noop.execute", sleep=0.05, fail=fail).after(gate))
        gate = plan.step(f"check-{wave}", "noop.execute", changed=False).after(*hosts)
    plan.step("summary", "noop.execute", changed=False).after(gate)
    return plan


def runs(client: Client) -> dict[str, Run]:
    """Start the runs, and return them by the names of their pictures as soon as each is as the picture shows it."""
    found = {}
    for name, plan, params in (
        ("large", fleet(), {"package": "openssl=3.0.15"}),
        ("partial", housekeeping(), {}),
        ("success", release(fails=False), {"version": "1.4.0"}),
        ("undone", release(fails=True), {"version": "1.5.0"}),
    ):  # fmt: skip
        found[name] = client.start(plan, params, run_id=f"{plan.name}-{params.get('version', '2026-11-30')}")
        found[name].wait(timeout=2 * PATIENCE)
    for name in ("approval", "queued", "waiting"):
        number = ("approval", "queued", "waiting").index(name) + 16
        found[name] = client.start(upgrade(), run_id=f"database-upgrade-{number}")
        if name == "approval":
            wait_for("the approval", lambda: found["approval"].report().step("approve-downtime").status == "waiting")
        else:
            wait_for("the queue", lambda: found[name].report().error)  # noqa: B023
    del found["queued"]
    return found


def photograph(place: Installation, found: dict[str, Run], folder: Path) -> None:
    """Write the pictures of all pages; exit where a page is wider than its window."""
    pages = {"runs": "/runs", **{f"run-{name}": f"/runs/{run.id}" for name, run in found.items()}}
    browser = Browser(folder / "chromium")
    try:
        with Flower(place) as flower:
            for name, path in pages.items():
                for theme, device in product(("light", "dark"), SIZES):
                    if name in ONE_PICTURE and (theme, device) != ("light", "desktop"):
                        continue
                    width, highest = SIZES[device]
                    browser.theme(theme)
                    browser.size(width, 800)
                    browser.open(flower.url(path))
                    browser.until("the page", lambda: browser.all(".longshore td, .longshore .banner"))
                    (TARGET / f"{name}-{theme}-{device}.png").write_bytes(_picture(browser, width, highest))
                    if browser.overflow() > 0:
                        raise SystemExit(f"{path} is {browser.overflow()} px too wide at {width} px")
    finally:
        browser.driver.quit()


def _picture(browser: Browser, width: int, highest: int) -> bytes:
    high: Any = browser.driver.execute_script("return document.documentElement.scrollHeight")
    browser.size(width, min(high, highest))
    answer: dict[str, str] = browser.driver.execute_cdp_cmd(
        "Page.captureScreenshot", {"format": "png", "optimizeForSpeed": False}
    )
    return b64decode(answer["data"])


def terminal(place: Installation, name: str, title: str, *arguments: str) -> None:
    """Run a command on a terminal, and draw the terminal's last screen as SVG."""
    main, side = pty.openpty()
    ioctl(side, TIOCSWINSZ, struct.pack("HHHH", 60, COLUMNS, 0, 0))
    environment = {**place.environment, "TERM": "xterm-256color", "COLORTERM": "truecolor", "LANG": "C.UTF-8"}
    process = subprocess.Popen(
        [LONGSHORE, *arguments], env=environment, cwd=place.folder, stdin=side, stdout=side, stderr=side
    )
    os.close(side)
    found = b""
    while True:
        try:
            read = os.read(main, 65536)
        except OSError:  # the end of a terminal
            break
        if not read:
            break
        found += read
    process.wait(PATIENCE)
    os.close(main)
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.assemble(("$ ", "bold green"), (f"longshore {' '.join(arguments)}", "bold")))
    for line in screen(found.decode()):
        console.print(Text.from_ansi(line))
    console.print()  # the drawing cuts descenders of the last line
    drawn = console.export_svg(title=title)
    # The style sheet that rich writes fetches a font from another site.
    (TARGET / f"terminal-{name}.svg").write_text(re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL))


def screen(written: str) -> list[str]:
    """The lines that a terminal shows in the end, with their colours."""
    lines, row = [""], 0
    for piece in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07|\r|\n|[^\x1b\r\n]+|\x1b.", written):
        if piece == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif piece.endswith("A") and piece.startswith("\x1b["):
            row = max(0, row - int(piece[2:-1] or 1))
        elif piece == "\x1b[2K":
            lines[row] = ""
        elif piece == "\r" or (piece.startswith("\x1b") and not piece.endswith("m")):
            continue
        else:
            lines[row] += piece
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def main() -> None:
    TARGET.mkdir(exist_ok=True)
    only = set(sys.argv[1:]) or {"pages", "terminal"}
    with tempfile.TemporaryDirectory(prefix="ls-") as name, RedisServer() as redis:
        folder = Path(name)
        place = Installation(redis.url, folder, namespace="web1", options={"actor": "alice"})
        try:
            place.worker("web-1", "-c", "4").start()
            client = place.client()
            if "pages" in only:
                photograph(place, runs(client), folder)
            if "terminal" in only:
                (folder / "release.yaml").write_text(release(fails=False).to_yaml())
                (folder / "broken.yaml").write_text(release(fails=True).to_yaml())
                terminal(place, "success", "A release", "run", "release.yaml", "-p", "version=1.4.1")
                terminal(place, "failure", "A release that fails", "run", "broken.yaml", "-p", "version=1.5.1")
                terminal(place, "simulate", "A simulation", "plan", "simulate", "release.yaml", "-p", "version=1.5.1")
        finally:
            place.close()
    total = sum(path.stat().st_size for path in TARGET.iterdir())
    print(f"{TARGET.relative_to(ROOT)}: {len(list(TARGET.iterdir()))} pictures, {total / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
