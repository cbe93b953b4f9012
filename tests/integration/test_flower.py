"""Flower with the pages of runs, in a real browser: the view of a live run, and the buttons."""

from __future__ import annotations

import json
import os
import shutil
import signal
import uuid
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.actions.wheel_input import ScrollOrigin
from selenium.webdriver.common.keys import Keys

from longshore.orchestration import Client, Plan
from longshore.orchestration.runs.diagram import COLOURS
from longshore.orchestration.runs.styles import style_of
from longshore.orchestration.store import audit
from tests.conftest import require
from tests.integration.conftest import QUICK
from tests.integration.flower import USER, Browser, Flower
from tests.integration.processes import PATIENCE, Installation, wait_for
from tests.servers import RedisServer

pytestmark = pytest.mark.operations


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
    with Flower(place, command=("longshore", "flower")) as made:
        # Flower enables the task events of a worker when the worker answers.
        wait_for("Flower to list the workers", lambda: place.workers[0].node in made.get("/api/workers?refresh=1")[1])
        yield made


@pytest.fixture(scope="module")
def read_only_flower(place: Installation) -> Iterator[Flower]:
    """A read-only Flower, with its pages below the path /ops."""
    with Flower(place, "--read-only", command=("longshore", "flower"), prefix="/ops") as made:
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
    """A plan with several levels, a retry, an approval, and a failure that undoes the run."""
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


def test_page_follows_a_run_through_failure_and_undo(
    flower: Flower, browser: Browser, client: Client, place: Installation
) -> None:
    run = client.start(release("release"), run_id=new("release"))
    browser.open(flower.url("/runs?plan=release"))
    browser.until("its row", lambda: browser.one(f"#to-{run.id}"))
    browser.click(f"#to-{run.id}")

    browser.until("left to be done", lambda: browser.colours()["left"][0] == "changed")
    browser.until("the approval to be waited for", lambda: browser.colours()["ask"][0] == "waiting")
    for step, (state, colour) in browser.colours().items():
        assert colour == COLOURS[state][0], step
    assert browser.colours()["migrate"][0] == "pending"

    browser.press("#do-approve-ask", "seen by me")
    browser.until("migrate to run", lambda: browser.colours()["migrate"][0] == "running")
    browser.until("its end", lambda: browser.state() == "undone")
    browser.until(
        "what was undone",
        lambda: (
            {name: state for name, (state, _) in browser.colours().items()}
            == {"pull": "undone", "left": "undone", "right": "undone", "ask": "unchanged", "migrate": "failed"}
        ),
    )
    assert all(colour == COLOURS[state][0] for state, colour in browser.colours().values())
    assert "no such table" in browser.text()
    assert browser.all("#gantt .bar.undone")
    assert browser.all("#gantt .bar.failed")
    assert browser.all("#row-right details")

    report = run.report()
    assert report.step("ask").data["by"] == USER
    line = next(line for line in audit.lines(client.store, run=run.id) if line.what == "approve")
    assert (line.actor, line.step, line.why) == (USER, "ask", "seen by me")
    assert line.origin == "flower 127.0.0.1"
    assert browser.console_errors() == []
    assert browser.requested_hosts() == {"127.0.0.1"}


def test_run_is_cancelled_by_button_and_by_keyboard(flower: Flower, browser: Browser, client: Client) -> None:
    plan = Plan("slow")
    plan.step("sleeps", "noop.execute", sleep=60, changed=True)
    run = client.start(plan, run_id=new("slow"))
    browser.open(flower.url(f"/runs/{run.id}"))
    browser.until("the run to start", lambda: browser.colours()["sleeps"][0] == "running")

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


def test_undo_and_resume_are_requested_by_button(flower: Flower, browser: Browser, client: Client) -> None:
    plan = Plan("good")
    plan.step("made", "noop.execute", changed=True)
    run = client.start(plan, run_id=new("good"))
    run.wait(timeout=PATIENCE)
    browser.open(flower.url(f"/runs/{run.id}"))
    wait_for("the state of the root task", lambda: flower.task(run.id).get("state") == "SUCCESS")
    browser.press("#do-undo")
    browser.until("its end", lambda: browser.state() == "undone")
    wait_for("the state of the root task", lambda: flower.task(run.id).get("state") == "FAILURE")

    kept = Plan("kept", on_failure="keep")
    kept.step("fails", "noop.execute", fail="no").after(kept.step("made", "noop.execute", changed=True))
    other = client.start(kept, run_id=new("kept"))
    other.wait(timeout=PATIENCE)
    browser.open(flower.url(f"/runs/{other.id}"))
    browser.press("#do-resume")
    browser.until("its second attempt", lambda: "2" in browser.one('#row-fails [data-of="Attempts"]').text)


def test_list_is_searched_by_text_plan_state_label_and_time(flower: Flower, browser: Browser, client: Client) -> None:
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


def test_pages_fit_a_phone(flower: Flower, browser: Browser, client: Client) -> None:
    run = client.start(release("phone", gate=False), run_id=new("phone" * 10))
    run.wait(timeout=PATIENCE)
    browser.size(390, 844)
    try:
        for path in ("/runs", f"/runs/{run.id}"):
            browser.open(flower.url(path))
            browser.until("the page", lambda: browser.all(".longshore td"))
            wide = browser.driver.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
            assert wide[0] <= wide[1], path
    finally:
        browser.size(1280, 1000)


def test_flower_shows_the_root_task_the_steps_and_the_end_of_a_run(flower: Flower, client: Client) -> None:
    plan = Plan("tree")
    first = plan.step("first", "noop.execute")
    wide = [plan.step(f"wide{n}", "noop.execute").after(first) for n in range(3)]
    plan.step("last", "noop.execute", sleep=1).after(*wide)
    run = client.start(plan, run_id=new("tree"))
    wait_for("the state of the root task", lambda: flower.task(run.id).get("state") == "STARTED")
    assert run.wait(timeout=PATIENCE).state == "succeeded"
    root = wait_for(
        "the state of the root task", lambda: (found := flower.task(run.id)).get("state") == "SUCCESS" and found
    )
    assert root["name"] == "tree"
    ids = [name for step in run.report().steps for name in step.task_ids]
    wait_for("the events of all tasks", lambda: all(flower.task(name).get("state") == "SUCCESS" for name in ids))
    tasks = {name: flower.task(name) for name in ids}
    assert {task["name"] for task in tasks.values()} == {f"tree.{step}" for step in plan.steps}
    assert {task["root_id"] for task in tasks.values()} == {run.id}
    assert all(run.id in task["args"] for task in tasks.values())
    known = json.loads(flower.get("/api/workers?refresh=1")[1])
    assert len(known) == 1  # only real workers

    bad = client.start(release("bad-tree", gate=False), run_id=new("bad-tree"))
    bad.wait(timeout=PATIENCE)
    root = wait_for(
        "the state of the root task", lambda: (found := flower.task(bad.id)).get("state") == "FAILURE" and found
    )
    assert "undone" in root["exception"]
    failed = flower.task(bad.report().step("migrate").task_ids[0])
    assert failed["state"] == "FAILURE"
    assert "no such table" in failed["exception"]
    undos = [
        one for one in json.loads(flower.get("/api/tasks?limit=200")[1]).values() if "bad-tree" in str(one["name"])
    ]
    assert "bad-tree.pull (undo)" in {one["name"] for one in undos}


def test_read_only_flower_has_no_buttons_and_refuses_commands(
    read_only_flower: Flower, browser: Browser, client: Client
) -> None:
    plan = Plan("watched")
    plan.step("asks", "approval.wait.execute").timeout(60)
    run = client.start(plan, run_id=new("watched"))
    browser.open(read_only_flower.url(f"/ops/runs/{run.id}"))
    browser.until("it to wait", lambda: browser.colours()["asks"][0] == "waiting")
    assert browser.all("[data-do]") == []
    code, text = read_only_flower.get(f"/ops/runs/{run.id}/cancel", data=b"", **{"X-Requested-With": "longshore"})
    assert (code, "read-only" in text) == (403, True)
    assert run.state() == "running"
    run.cancel()


def test_pages_need_a_login_and_refuse_cross_site_commands(flower: Flower, client: Client, place: Installation) -> None:
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
    wait_for("the run to start", lambda: run.state() == "running")
    run.cancel()


def test_flower_without_a_login_refuses_a_public_address(place: Installation) -> None:
    flower = Flower(place, "--address=0.0.0.0", FLOWER_BASIC_AUTH="")
    assert flower.process.wait(PATIENCE) != 0
    assert "Flower does not start open to the world" in flower.log.read_text()


def test_flower_refuses_to_start_with_an_unknown_option(place: Installation) -> None:
    flower = Flower(place, "--readonly")
    assert flower.process.wait(PATIENCE) == 2
    assert "Flower has no option --readonly: did you mean --read_only?" in flower.log.read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_flower_ends_after_one_signal_while_redis_does_not_answer(tmp_path: Path, number: signal.Signals) -> None:
    with RedisServer() as server, Flower(Installation(server.url, tmp_path), command=("longshore", "flower")) as flower:
        os.kill(server.pid, signal.SIGSTOP)
        assert flower.get("/workers?refresh=1")[0] == 200  # Flower's threads now wait for Redis
        flower.process.send_signal(number)
        assert flower.process.wait(PATIENCE) == 0
    assert "Traceback" not in flower.log.read_text()


def test_flower_without_a_login_admits_only_this_machine(place: Installation) -> None:
    with Flower(place, FLOWER_BASIC_AUTH="") as flower:
        assert flower.get("/runs", login=None)[0] == 200
        # a page under a foreign name that resolves to this machine: pages of Longshore and of Flower, and static files
        for path in ("/runs", "/", "/workers", "/tasks", "/broker", "/metrics", "/longshore/longshore.js"):
            assert flower.get(path, login=None, Host="evil.example")[0] == 403, path
        assert flower.get("/workers", login=None)[0] == 200
        for origin in ("http://evil.example", "null"):
            assert flower.get("/runs/any/cancel", login=None, data=b"", Origin=origin)[0] == 403
        assert flower.get("/api/tasks", login=None)[0] == 401


def test_flower_of_an_application_has_the_pages(place: Installation) -> None:
    config = Path(__file__).resolve().parents[2] / "compose/flowerconfig.py"
    with Flower(place, command=("celery", "-A", "longshore.workers", "flower", f"--conf={config}")) as flower:
        assert flower.get("/runs")[0] == 200
        assert flower.get("/runs", login=None)[0] == 401
        assert 'href="/runs"' in flower.get("/workers")[1]


def ended(client: Client, plan: Plan) -> str:
    """Return the path of the page of an ended run."""
    run = client.start(plan, run_id=new(plan.name))
    run.wait(timeout=PATIENCE)
    return f"/runs/{run.id}"


def failing(name: str) -> Plan:
    plan = Plan(name)
    standing = {"project": "shop", "healthy": True, "at": 1, "text": "shop is back at revision 41, healthy"}
    build = plan.step("build", "noop.execute", changed=True, data={"standing": [standing]})
    plan.step("check", "noop.execute", fail="status 503").after(build)
    return plan


def test_banner_of_a_failed_release_names_the_failure_and_the_standing(
    flower: Flower, browser: Browser, client: Client
) -> None:
    path = ended(client, failing("banner"))
    for theme in ("light", "dark"):
        browser.theme(theme)
        browser.open(flower.url(path))
        banner = browser.one(".banner")
        assert "Step check failed; " in banner.text
        assert "undone, and no change remains." in banner.text
        assert "status 503" in banner.text
        assert "In production shop is back at revision 41, healthy" in banner.text
        shade = getattr(style_of("undone"), theme)
        assert browser.colour(".banner .word", "backgroundColor") == shade.border
        assert browser.colour(".banner", "backgroundColor") == shade.fill
    assert browser.one('.steps [aria-label="state: failed"]')
    assert browser.driver.title.startswith("↩ undone")
    browser.theme("light")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_of_a_page_has_enough_contrast(flower: Flower, browser: Browser, client: Client, theme: str) -> None:
    path = ended(client, failing("readable"))
    browser.theme(theme)
    try:
        for page in (path, "/runs?plan=readable"):
            browser.open(flower.url(page))
            browser.until("the page", lambda: browser.all(".longshore td"))
            assert browser.faint() == []
    finally:
        browser.theme("light")


def test_theme_of_the_page_overrides_that_of_the_system(flower: Flower, browser: Browser) -> None:
    browser.open(flower.url("/runs"))
    light = browser.colour("body", "backgroundColor")
    browser.click("#theme-toggle")
    browser.click('[data-bs-theme-value="dark"]')
    try:
        browser.until("a dark page", lambda: browser.colour("body", "backgroundColor") != light)
        browser.open(flower.url("/runs"))
        assert browser.colour("body", "backgroundColor") != light
    finally:
        browser.click("#theme-toggle")
        browser.click('[data-bs-theme-value="system"]')


def test_timeline_is_zoomed_by_buttons_keys_wheel_and_mouse(flower: Flower, browser: Browser, client: Client) -> None:
    plan = Plan("zoomed", sequential=True)
    for number in range(4):
        plan.step(f"s{number}", "noop.execute", sleep=0.4, fail=number == 3)
    browser.open(flower.url(ended(client, plan)))
    browser.console_errors()  # discard messages of earlier tests

    def width() -> float:
        return float(browser.driver.execute_script("return document.getElementById('ticks').clientWidth"))

    def look() -> None:
        """Check that the labels of ticks differ, are in order, and do not overlap."""
        ticks: list[tuple[str, float, float]] = browser.driver.execute_script(
            "return [...document.querySelectorAll('#ticks span')].map(tick => { const range = new Range();"
            "range.selectNodeContents(tick); const box = range.getBoundingClientRect();"
            "return [tick.textContent, box.left, box.right]})"
        )
        assert len(ticks) > 2
        assert len({text for text, _, _ in ticks}) == len(ticks)
        assert all(one[2] < other[1] for one, other in pairwise(ticks)), ticks

    whole = width()
    look()
    browser.click('[data-zoom="in"]')
    assert width() == pytest.approx(2 * whole, rel=0.02)
    look()
    for _ in range(3):
        browser.click('[data-zoom="in"]')
    assert browser.one("#zoomed").text == "1600 %"
    look()
    browser.click('[data-zoom="out"]')
    browser.one("#gantt").send_keys("0")
    assert width() == whole
    browser.one("#gantt").send_keys("+")
    assert width() == pytest.approx(2 * whole, rel=0.02)
    browser.click('[data-zoom="fit"]')
    track = browser.one("#gantt .line .track")
    ActionChains(browser.driver).key_down(Keys.CONTROL).scroll_from_origin(
        ScrollOrigin.from_element(track), 0, -120
    ).key_up(Keys.CONTROL).perform()
    browser.until("the wheel's zoom", lambda: width() > whole)
    browser.click('[data-zoom="fit"]')
    box = track.rect
    ActionChains(browser.driver).move_to_element_with_offset(
        track, round(box["width"] / 4), 0
    ).click_and_hold().move_by_offset(-round(box["width"] / 4), 0).release().perform()
    browser.until("the marked part's zoom", lambda: width() == pytest.approx(4 * whole, rel=0.1))
    look()
    assert browser.all("#gantt .bar.undo.undone")
    assert browser.colour("#gantt .bar.failed", "borderTopColor") == style_of("failed").light.border
    assert browser.console_errors() == []


def test_list_of_120_steps_is_folded_filtered_and_shows_failures_first(
    flower: Flower, browser: Browser, client: Client
) -> None:
    plan = Plan("fleet", on_error="continue", on_failure="keep")
    begin = plan.step("begin", "noop.execute", changed=False)
    for number in range(1, 120):
        plan.step(f"web-{number:03}", "noop.execute", fail="disk full" if number == 50 else False).after(begin)
    browser.open(flower.url(ended(client, plan)))
    rows = "table.steps .step:not([hidden]) .step-name"

    assert [each.text for each in browser.all(rows)] == ["web-050", "begin"]
    assert set(browser.colours()) == {"begin", "group:1"}
    assert "web-* × 119" in browser.one(".picture").get_attribute("textContent")
    browser.one("#filter").send_keys("web-01")
    assert len(browser.all(rows)) == 10
    assert "10 of 120 steps match" in browser.one("#matches").text
    browser.one("#filter").clear()
    browser.one("#filter").send_keys("disk full")
    assert [each.text for each in browser.all(rows)] == ["web-050"]
    browser.one("#filter").clear()
    browser.one("#filter").send_keys(" ")
    browser.click('[data-filter="failed"]')
    assert [each.text for each in browser.all(rows)] == ["web-050"]
    browser.click('[data-filter="failed"]')
    browser.click("[data-open]")
    assert len(browser.all(rows)) == 120
    browser.click("#failed-first")
    assert browser.all(rows)[0].text == "begin"
    assert len(browser.all("#gantt .line:not([hidden])")) == 3
    browser.click("[data-fold]")
    assert len(browser.all("#gantt .line:not([hidden])")) == 122
    browser.size(390, 844)
    try:
        assert browser.overflow() <= 0
    finally:
        browser.size(1280, 1000)


def test_filter_and_folds_survive_a_refresh(flower: Flower, browser: Browser, client: Client) -> None:
    plan = Plan("lasting")
    for number in range(8):
        plan.step(f"host-{number}", "noop.execute")
    plan.step("last", "noop.execute", sleep=60).after("host-0")
    run = client.start(plan, run_id=new("lasting"))
    browser.open(flower.url(f"/runs/{run.id}"))
    browser.until("last to run", lambda: browser.colours()["last"][0] == "running")
    browser.click("[data-fold]")
    browser.click('[data-zoom="in"]')
    browser.one("#filter").send_keys("host-3")
    browser.driver.execute_script("document.querySelector('table.steps').id = 'old'")
    before = browser.one('.banner[data-part="banner"]').text
    client.get(run.id).cancel("enough")
    browser.until("another banner", lambda: browser.one(".banner").text != before)
    browser.until("a fresh table", lambda: not browser.all("#old"))
    assert [each.text for each in browser.all("table.steps .step:not([hidden]) .step-name")] == ["host-3"]
    assert browser.one("#zoomed").text == "200 %"
    assert len(browser.all("#gantt .line.part:not([hidden])")) == 8
    assert browser.one("#filter").get_attribute("value") == "host-3"


def test_page_of_a_queued_run_shows_its_reason_and_position(flower: Flower, browser: Browser, client: Client) -> None:
    plan = Plan("one-by-one", concurrency={"key": f"door-{uuid.uuid4().hex}"})
    plan.step("asks", "approval.wait.execute").timeout(600)
    runs = [client.start(plan, run_id=new("one-by-one")) for _ in range(1)]
    wait_for("the approval of the first run", lambda: runs[0].report().step("asks").status == "waiting")
    for _ in range(2):
        runs.append(client.start(plan, run_id=new("one-by-one")))
        wait_for("the pending reason of the last run", lambda: runs[-1].report().error)
    browser.open(flower.url(f"/runs/{runs[2].id}"))
    banner = browser.one(".banner").text
    assert f"is held by {runs[0].id}; 1 run waits before it." in banner
    assert "2 in the queue" in browser.one(".facts").text
    assert browser.state() == "pending"
    assert browser.colour(".banner .word", "backgroundColor") != style_of("running").light.border
    browser.open(flower.url("/runs?plan=one-by-one&state=pending"))
    browser.until("both", lambda: len(browser.all("tbody tr")) == 2)
    assert "1 run waits before it" in browser.text()
    for run in reversed(runs):
        run.cancel()


def test_list_shows_the_failed_step_and_filters_by_state(flower: Flower, browser: Browser, client: Client) -> None:
    name = f"listed-{uuid.uuid4().hex[:6]}"
    path = ended(client, failing(name))
    kept = Plan(name, on_error="continue", on_failure="keep")
    kept.step("made", "noop.execute", changed=True)
    kept.step("tolerated", "noop.execute", fail="no matter")
    other = ended(client, kept)
    browser.open(flower.url(f"/runs?plan={name}"))
    row = browser.until("the row", lambda: browser.one(f"tr:has(#to-{path.rpartition('/')[2]})"))
    assert all(text in row.text for text in ("undone", "check", "status 503", name, "tester"))
    assert "tolerated" in browser.one(f"tr:has(#to-{other.rpartition('/')[2]})").text
    browser.click('.chip[data-state="partial"]')
    browser.until("one row", lambda: len(browser.all("tbody tr")) == 1)
    assert "state=partial" in browser.driver.current_url
    assert f"plan={name}" in browser.driver.current_url


def test_output_of_a_step_is_linked_and_shown_as_text(flower: Flower, browser: Browser, client: Client) -> None:
    plan = Plan("printing")
    plan.step("prints", "command.shell.execute", command="echo '<b>bold</b>'; printf 'a\\033[31mred'")
    path = ended(client, plan)
    browser.open(flower.url(path))
    assert "/log?step=prints" in str(browser.one("#row-prints a.log").get_attribute("href"))
    code, text = flower.get(f"{path}/log?step=prints")
    assert (code, "<b>bold</b>" in text, "\x1b" in text) == (200, True, False)
    assert flower.get(f"{path}/log?step=prints", login=None)[0] == 401
    assert flower.get(f"{path}/log?step=nosuch")[0] == 404
    assert flower.get("/runs/no-such-run/log?step=prints")[0] == 404


def test_hostile_texts_are_shown_as_text(flower: Flower, browser: Browser, client: Client) -> None:
    hostile = "<img src=x onerror=document.title='taken'>\"'><script>document.title='taken'</script>{{ 1 }}" + "x" * 900
    plan = Plan("hostile", params={"text": {"type": "string"}}, on_error="continue", on_failure="keep")
    for number in range(8):
        plan.step(f"{'n' * 40}-{number}", "noop.execute", fail=hostile.replace("{{", "{").replace("}}", "}"))
    run = client.start(plan, {"text": hostile.replace("{{", "(")}, run_id=new("hostile"))
    run.wait(timeout=PATIENCE)
    browser.size(390, 844)
    try:
        for path in (f"/runs/{run.id}", "/runs?plan=hostile"):
            browser.open(flower.url(path))
            browser.until("the page", lambda: browser.all(".longshore td"))
            assert "taken" not in browser.driver.title
            assert browser.all(".longshore img, .longshore script") == []
            assert browser.overflow() <= 0
    finally:
        browser.size(1280, 1000)


def test_pages_work_under_a_url_prefix(read_only_flower: Flower, browser: Browser, client: Client) -> None:
    plan = Plan("prefixed")
    plan.step("prints", "command.shell.execute", command="echo there")
    path = ended(client, plan)
    browser.open(read_only_flower.url(f"/ops{path}"))
    browser.until("the ticks", lambda: browser.all("#ticks span"))
    assert browser.state() == "succeeded"
    link = str(browser.one("#row-prints a.log").get_attribute("href"))
    assert read_only_flower.get(link.partition(str(read_only_flower.port))[2]) == (200, "there\n")
    browser.click(".crumbs a")
    browser.until("the row", lambda: browser.one(f"#to-{path.rpartition('/')[2]}"))


def test_failed_unit_of_a_large_run_is_listed_first_with_its_output(
    flower: Flower, browser: Browser, client: Client
) -> None:
    plan = Plan("units")
    # One unit starts a command; the path of the others exists.
    creates = "{{ '/nowhere' if item == 204 else '/' }}"
    each = plan.step("each", "command.shell.execute", command="echo unit {{ item }}; exit 1", creates=creates)
    each.foreach(list(range(205)))
    browser.open(flower.url(path := ended(client, plan)))
    assert "205 parts" in flower.get(path)[1]
    browser.click("#items-each summary")
    units = browser.all("#items-each li")
    assert len(units) == 200
    assert "failed" in units[0].text
    assert "204" in units[0].text
    assert "/log?step=each%5B204%5D" in str(browser.one("#items-each li a.log").get_attribute("href"))
    assert flower.get(f"{path}/log?step=each%5B204%5D") == (200, "unit 204\n")
