"""Flower with the pages of runs, in a real browser: what is shown as a run goes, and what its buttons do."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException, WebDriverException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from longshore.orchestration import Client, Plan
from longshore.orchestration.runs.diagram import COLOURS
from longshore.orchestration.store import audit
from tests.conftest import require
from tests.integration.conftest import QUICK
from tests.integration.processes import LONGSHORE, PATIENCE, Installation, wait_for
from tests.servers import RedisServer, free_port

pytestmark = pytest.mark.operations

T = TypeVar("T")
USER, PASSWORD = "ops", "correct-horse"
#: Where pictures of what was seen are left, if anybody wants them.
PICTURES = os.environ.get("LONGSHORE_PICTURES", "")
_OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --hide-scrollbars --lang=en"
)


class Flower:
    """One as `longshore flower` starts it."""

    def __init__(
        self, place: Installation, *options: str, command: tuple[str, ...] = (LONGSHORE, "flower"), **environment: str
    ) -> None:
        self.port = free_port()
        self.log = place.folder / f"flower-{self.port}.log"
        given = place.environment | {"FLOWER_BASIC_AUTH": f"{USER}:{PASSWORD}"} | environment
        given = {name: value for name, value in given.items() if value or name != "FLOWER_BASIC_AUTH"}
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [*command, f"--port={self.port}", *options],
                env=given, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=place.folder,
            )  # fmt: skip

    def __enter__(self) -> Flower:
        wait_for(f"Flower: {self.log.read_text()}", lambda: self.get("/healthcheck")[0] == 200)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def url(self, path: str, login: str = f"{USER}:{PASSWORD}@") -> str:
        return f"http://{login}127.0.0.1:{self.port}{path}"

    def get(
        self, path: str, login: str | None = f"{USER}:{PASSWORD}", data: bytes | None = None, **headers: str
    ) -> tuple[int, str]:
        asked = urllib.request.Request(self.url(path, ""), data=data, headers=headers)  # noqa: S310 - our own
        if login:
            asked.add_header("Authorization", "Basic " + b64encode(login.encode()).decode())
        try:
            with urllib.request.urlopen(asked, timeout=30) as answer:  # noqa: S310
                return int(answer.status), answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def task(self, uuid_: str) -> dict[str, Any]:
        code, text = self.get(f"/api/task/info/{uuid_}")
        return dict(json.loads(text)) if code == 200 else {}


class Browser:
    """Chromium, of which all messages of the console are errors."""

    def __init__(self, folder: Path) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or ""
        for option in [*_OPTIONS.split(), f"--user-data-dir={folder}"]:
            options.add_argument(option)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(service=Service(shutil.which("chromedriver")), options=options)
        self.size(1280, 1000)

    def size(self, width: int, height: int) -> None:
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )

    def open(self, url: str) -> None:
        self.driver.get(url)

    def until(self, what: str, look: Callable[[], T]) -> T:
        """The page is renewed as it goes: what was found may be gone."""

        def calmly() -> T | None:
            with contextlib.suppress(StaleElementReferenceException, WebDriverException):
                return look()
            return None

        return wait_for(f"{what}\n{self.text()[:2000]}", calmly, 40)  # type: ignore[return-value]

    def one(self, selector: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self) -> str:
        with contextlib.suppress(WebDriverException):
            return str(self.driver.execute_script("return document.body.innerText"))
        return ""

    def state(self) -> str:
        return str(self.driver.execute_script("return document.getElementById('state')?.textContent"))

    def colours(self) -> dict[str, tuple[str, str]]:
        """Of each step of the picture: its state, and the colour that it has."""
        found: Any = self.driver.execute_script(
            "return [...document.querySelectorAll('g[id^=step-]')].map(g => "
            "[g.id.slice(5), g.getAttribute('class'), g.querySelector('rect').getAttribute('fill')])"
        )
        return {name: (state, fill) for name, state, fill in found}

    def click(self, selector: str) -> None:
        self.until(f"a click on {selector}", lambda: self.one(selector).click() or True)

    def press(self, selector: str, why: str = "") -> None:
        self.click(selector)
        self.until("the question", lambda: self.one("#ask[open]"))
        self.one("#ask-why").send_keys(why)
        self.one("#ask-yes").click()

    def said(self) -> list[str]:
        """What the console says of errors."""
        known: Any = self.driver.get_log("browser")
        return [
            one["message"] for one in known if one["level"] in {"SEVERE", "WARNING"} and "favicon" not in one["message"]
        ]

    def asked_for(self) -> set[str]:
        """The hosts that the pages have asked for anything."""
        hosts = set()
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                url = message["params"]["request"]["url"]
                if url.startswith("http"):
                    hosts.add(url.split("/")[2].rpartition("@")[2].partition(":")[0])
        return hosts

    def picture(self, name: str) -> None:
        assert len(self.driver.get_screenshot_as_png()) > 5000
        if PICTURES:
            self.driver.save_screenshot(f"{PICTURES}/{name}.png")


@pytest.fixture(scope="module")
def place(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    made = Installation(redis_server.url, tmp_path_factory.mktemp("flower"), options=dict(QUICK))
    try:
        made.worker("shop", "-c", "4").start()
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def client(place: Installation) -> Client:
    return place.client()


@pytest.fixture(scope="module")
def flower(place: Installation) -> Iterator[Flower]:
    with Flower(place) as made:
        # It has workers tell of what they do as soon as it sees them.
        wait_for("the workers", lambda: place.workers[0].node in made.get("/api/workers?refresh=1")[1])
        yield made


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    for program in ("chromium", "chromedriver"):
        if shutil.which(program) is None:
            require(f"no {program} here")
    made = Browser(tmp_path_factory.mktemp("chromium"))
    yield made
    made.driver.quit()


def release(name: str, *, gate: bool = True) -> Plan:
    """Levels, a retry, an approval; then a failure, and all is taken back."""
    plan = Plan(name, labels={"team": "shop"})
    pull = plan.step("pull", "noop.execute", changed=True)
    left = plan.step("left", "noop.execute", changed=True, sleep=1).after(pull)
    right = plan.step("right", "noop.execute", changed=True, data={"image": "shop:2"}).after(pull)
    last = [left, right]
    if gate:
        last = [plan.step("ask", "approval.wait.execute").after(left, right).timeout(120)]
    plan.step("migrate", "noop.execute", fail="no such table", sleep=1).after(*last)
    return plan


def new(name: str) -> str:
    return f"{name}-{uuid.uuid4().hex[:6]}"


def test_a_run_is_watched_as_it_goes_fails_and_is_undone(
    flower: Flower, browser: Browser, client: Client, place: Installation
) -> None:
    run = client.start(release("release"), run_id=new("release"))
    browser.open(flower.url("/runs?plan=release"))
    browser.until("its row", lambda: browser.one(f"#to-{run.id}"))
    browser.picture("list")
    browser.click(f"#to-{run.id}")

    browser.until("left to be done", lambda: browser.colours()["left"][0] == "changed")
    browser.until("the approval to be waited for", lambda: browser.colours()["ask"][0] == "waiting")
    for step, (state, colour) in browser.colours().items():
        assert colour == COLOURS[state][0], step
    assert browser.colours()["migrate"][0] == "pending"
    browser.picture("waits")

    browser.press("#do-approve-ask", "seen by me")
    browser.until("migrate to run", lambda: browser.colours()["migrate"][0] == "running")
    browser.picture("runs")
    browser.until("its end", lambda: browser.state() == "undone")
    browser.until(
        "what was undone",
        lambda: (
            {name: state for name, (state, _) in browser.colours().items()}
            == {"pull": "undone", "left": "undone", "right": "undone", "ask": "unchanged", "migrate": "failed"}
        ),
    )
    assert all(colour == COLOURS[state][0] for state, colour in browser.colours().values())
    browser.picture("undone")
    assert "no such table" in browser.text()
    assert browser.all("#gantt rect.undone")
    assert browser.all("#gantt rect.failed")
    assert browser.all("#row-right details")

    report = run.report()
    assert report.step("ask").data["by"] == USER
    line = next(line for line in audit.lines(client.store, run=run.id) if line.what == "approve")
    assert (line.actor, line.step, line.why) == (USER, "ask", "seen by me")
    assert line.origin == "flower 127.0.0.1"
    assert browser.said() == []
    assert browser.asked_for() == {"127.0.0.1"}


def test_a_run_is_cancelled_by_its_button_and_by_keyboard_alone(
    flower: Flower, browser: Browser, client: Client
) -> None:
    plan = Plan("slow")
    plan.step("sleeps", "noop.execute", sleep=60, changed=True)
    run = client.start(plan, run_id=new("slow"))
    browser.open(flower.url(f"/runs/{run.id}"))
    browser.until("it to run", lambda: browser.colours()["sleeps"][0] == "running")

    def press_the_button() -> bool:
        active = browser.driver.switch_to.active_element
        pressed = active.get_attribute("id") == "do-cancel"
        active.send_keys(Keys.ENTER if pressed else Keys.TAB)
        return bool(pressed)

    browser.until("the button, by tabs", press_the_button)
    browser.until("the question", lambda: browser.driver.switch_to.active_element.get_attribute("id") == "ask-why")
    browser.driver.switch_to.active_element.send_keys("too slow" + Keys.ENTER)
    browser.until("its end", lambda: browser.state() == "undone")
    assert run.report().cause == "cancel"
    line = next(line for line in audit.lines(client.store, run=run.id) if line.what == "cancel")
    assert (line.actor, line.why) == (USER, "too slow")
    browser.until("no button to cancel with", lambda: not browser.all("#do-cancel"))


def test_an_undo_and_a_resume_are_asked_for_by_button(flower: Flower, browser: Browser, client: Client) -> None:
    plan = Plan("good")
    plan.step("made", "noop.execute", changed=True)
    run = client.start(plan, run_id=new("good"))
    run.wait(timeout=PATIENCE)
    browser.open(flower.url(f"/runs/{run.id}"))
    wait_for("its root", lambda: flower.task(run.id).get("state") == "SUCCESS")
    browser.press("#do-undo")
    browser.until("its end", lambda: browser.state() == "undone")
    wait_for("its root", lambda: flower.task(run.id).get("state") == "FAILURE")

    kept = Plan("kept", on_failure="keep")
    kept.step("fails", "noop.execute", fail="no").after(kept.step("made", "noop.execute", changed=True))
    other = client.start(kept, run_id=new("kept"))
    other.wait(timeout=PATIENCE)
    browser.open(flower.url(f"/runs/{other.id}"))
    browser.press("#do-resume")
    browser.until("its second attempt", lambda: "2" in browser.one('#row-fails [data-of="Attempts"]').text)


def test_runs_are_searched_by_text_plan_state_label_and_time(flower: Flower, browser: Browser, client: Client) -> None:
    one, other = new("searched"), new("searched")
    params = {"version": {"type": "string"}, "db_password": {"type": "string", "default": "in-the-clear"}}
    plan = Plan("searched", labels={"team": "pay"}, params=params)
    plan.step("a", "noop.execute")
    client.start(plan, {"version": "7.3.1"}, run_id=one).wait(timeout=PATIENCE)
    page = flower.get(f"/runs/{one}")[1]
    assert "version=7.3.1 db_password=***" in page
    assert "in-the-clear" not in page
    bad = Plan("searched-bad")
    bad.step("a", "noop.execute", fail="the disk is full")
    client.start(bad, run_id=other).wait(timeout=PATIENCE)
    for query, found, not_found in (
        ("plan=searched", one, other),
        ("q=version%3D7.3", one, other),
        ("q=disk+is+full", other, one),
        ("state=undone&plan=searched-bad", other, one),
        ("label=team%3Dpay", one, other),
        ("label=team", one, other),
        (f"q={one.upper()}&since=1h", one, other),
    ):
        code, text = flower.get(f"/runs?{query}")
        assert code == 200
        assert found in text, query
        assert ("version=7.3.1 db_password=***" in text) == (found == one), query
        assert f'id="to-{not_found}"' not in text, query
    assert "is not a date" in flower.get("/runs?since=whenever")[1]
    assert "unknown state" in flower.get("/runs?state=good")[1]
    code, text = flower.get("/runs?q=%3Cscript%3Ealert(1)%3C/script%3E")
    assert "<script>alert" not in text
    browser.open(flower.url("/runs?plan=searched"))
    before = len(browser.all("tbody tr"))
    client.start(plan, {"version": "8"}, run_id=new("searched"))
    browser.until("a new row, by itself", lambda: len(browser.all("tbody tr")) == before + 1)


def test_the_pages_fit_a_phone(flower: Flower, browser: Browser, client: Client) -> None:
    run = client.start(release("phone", gate=False), run_id=new("phone" * 10))
    run.wait(timeout=PATIENCE)
    browser.size(390, 844)
    try:
        for path in ("/runs", f"/runs/{run.id}"):
            browser.open(flower.url(path))
            browser.until("the page", lambda: browser.all(".longshore td"))
            wide = browser.driver.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
            assert wide[0] <= wide[1], path
            browser.picture(f"phone{path.count('/')}")
    finally:
        browser.size(1280, 1000)


def test_flower_itself_shows_one_root_named_steps_and_how_the_run_ended(flower: Flower, client: Client) -> None:
    plan = Plan("tree")
    first = plan.step("first", "noop.execute")
    wide = [plan.step(f"wide{n}", "noop.execute").after(first) for n in range(3)]
    plan.step("last", "noop.execute", sleep=1).after(*wide)
    run = client.start(plan, run_id=new("tree"))
    wait_for("its root", lambda: flower.task(run.id).get("state") == "STARTED")
    assert run.wait(timeout=PATIENCE).state == "succeeded"
    root = wait_for("its root", lambda: (found := flower.task(run.id)).get("state") == "SUCCESS" and found)
    assert root["name"] == "tree"
    tasks = {name: flower.task(name) for step in run.report().steps for name in step.task_ids}
    assert {task["name"] for task in tasks.values()} == {f"tree.{step}" for step in plan.steps}
    assert {task["root_id"] for task in tasks.values()} == {run.id}
    assert {task["state"] for task in tasks.values()} == {"SUCCESS"}
    assert all(run.id in task["args"] for task in tasks.values())
    known = json.loads(flower.get("/api/workers?refresh=1")[1])
    assert len(known) == 1  # no worker that is none

    bad = client.start(release("bad-tree", gate=False), run_id=new("bad-tree"))
    bad.wait(timeout=PATIENCE)
    root = wait_for("its root", lambda: (found := flower.task(bad.id)).get("state") == "FAILURE" and found)
    assert "undone" in root["exception"]
    failed = flower.task(bad.report().step("migrate").task_ids[0])
    assert failed["state"] == "FAILURE"
    assert "no such table" in failed["exception"]
    undos = [
        one for one in json.loads(flower.get("/api/tasks?limit=200")[1]).values() if "bad-tree" in str(one["name"])
    ]
    assert "bad-tree.pull (undo)" in {one["name"] for one in undos}


def test_a_read_only_flower_has_no_buttons_and_takes_no_command(
    place: Installation, browser: Browser, client: Client
) -> None:
    plan = Plan("watched")
    plan.step("asks", "approval.wait.execute").timeout(60)
    run = client.start(plan, run_id=new("watched"))
    with Flower(place, "--read-only") as flower:
        browser.open(flower.url(f"/runs/{run.id}"))
        browser.until("it to wait", lambda: browser.colours()["asks"][0] == "waiting")
        assert browser.all("[data-do]") == []
        browser.picture("read-only")
        code, text = flower.get(f"/runs/{run.id}/cancel", data=b"", **{"X-Requested-With": "longshore"})
        assert (code, "read-only" in text) == (403, True)
    assert run.state() == "running"
    run.cancel()


def test_nothing_is_shown_without_a_login_and_no_foreign_page_gives_commands(
    flower: Flower, client: Client, place: Installation
) -> None:
    plan = Plan("guarded")
    plan.step("sleeps", "noop.execute", sleep=30)
    run = client.start(plan, run_id=new("guarded"))
    for path in ("/runs", f"/runs/{run.id}", f"/runs/{run.id}?part=1", "/tasks", "/api/tasks", "/api/workers"):
        for login in (None, "ops:wrong"):
            assert flower.get(path, login=login)[0] == 401, path
    asked = {"X-Requested-With": "longshore"}
    assert flower.get(f"/runs/{run.id}/cancel", login=None, data=b"", **asked)[0] == 401
    assert flower.get(f"/runs/{run.id}/cancel", data=b"")[0] == 403
    assert flower.get(f"/runs/{run.id}/cancel", data=b"", Origin="http://evil.example", **asked)[0] == 403
    assert flower.get("/runs/no-such-run")[0] == 404
    assert flower.get(f"/runs/{run.id}/approve", data=b"step=nosuch", **asked)[0] == 404
    assert flower.get("/longshore/../config.py")[0] in {403, 404}
    wait_for("it to run", lambda: run.state() == "running")
    run.cancel()


@pytest.mark.parametrize("options", [["--address=0.0.0.0"], ["--address=192.0.2.1"]])
def test_flower_does_not_start_open_to_the_world(place: Installation, options: list[str]) -> None:
    flower = Flower(place, *options, FLOWER_BASIC_AUTH="")
    assert flower.process.wait(PATIENCE) != 0
    assert "Flower does not start open to the world" in flower.log.read_text()


def test_without_a_login_only_this_machine_is_let_in(place: Installation) -> None:
    with Flower(place, FLOWER_BASIC_AUTH="") as flower:
        assert flower.get("/runs", login=None)[0] == 200
        # a page of somebody else's, whose name leads to this machine: ours, Flower's own, and what they are made of
        for path in ("/runs", "/", "/workers", "/tasks", "/broker", "/metrics", "/longshore/longshore.js"):
            assert flower.get(path, login=None, Host="evil.example")[0] == 403, path
        assert flower.get("/workers", login=None)[0] == 200
        for origin in ("http://evil.example", "null"):
            assert flower.get("/runs/any/cancel", login=None, data=b"", Origin=origin)[0] == 403
        assert flower.get("/api/tasks", login=None)[0] == 401


def test_a_large_run_is_shown_in_time(flower: Flower, client: Client) -> None:
    plan = Plan("wide")
    plan.step("many", "noop.execute").foreach(list(range(500)))
    run = client.start(plan, run_id=new("wide"))
    run.wait(timeout=PATIENCE)
    began = time.monotonic()
    code, text = flower.get(f"/runs/{run.id}")
    assert code == 200
    assert "500 parts" in text
    assert time.monotonic() - began < PATIENCE


def test_a_flower_of_ones_own_has_the_pages_too(place: Installation) -> None:
    config = Path(__file__).resolve().parents[2] / "compose/flowerconfig.py"
    command = (sys.executable, "-m", "celery", "-A", "longshore.workers", "flower", f"--conf={config}")
    with Flower(place, command=command) as flower:
        assert flower.get("/runs")[0] == 200
        assert flower.get("/runs", login=None)[0] == 401
        assert 'href="/runs"' in flower.get("/workers")[1]
