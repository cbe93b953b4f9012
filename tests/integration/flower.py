"""Flower as a process, and a browser for its pages; independent of pytest."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException, WebDriverException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from tests.integration.processes import Installation, fork_server, wait_for
from tests.servers import free_port

T = TypeVar("T")
USER, PASSWORD = "ops", "correct-horse"
CONFIG = Path(__file__).resolve().parents[2] / "workers" / "flower_pages" / "config.py"
_OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --hide-scrollbars --lang=en"
)


_FAINT = """
const parse = (text) => { const n = text.match(/[\\d.]+/g).map(Number);
  const whole = text.startsWith("color(srgb") ? 255 : 1;
  return [...n.slice(0, 3).map((c) => c * whole), n[3] ?? 1]; };
const over = (top, under) => top.slice(0, 3).map((c, i) => c * top[3] + under[i] * (1 - top[3])).concat(1);
const luminance = ([r, g, b]) => { const [x, y, z] = [r, g, b].map((c) => { c /= 255;
  return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; }); return 0.2126 * x + 0.7152 * y + 0.0722 * z; };
const background = (element) => { if (!element) return [255, 255, 255, 1];
  const own = parse(getComputedStyle(element).backgroundColor);
  return own[3] === 1 ? own : over(own, background(element.parentElement)); };
const walker = document.createTreeWalker(document.querySelector(".longshore"), NodeFilter.SHOW_TEXT);
const faint = [];
while (walker.nextNode()) {
  const [text, element] = [walker.currentNode.data.trim(), walker.currentNode.parentElement];
  if (!text || !element.checkVisibility({ visibilityProperty: true })) continue;
  if (element.closest("title, button:disabled, script, style")) continue;
  const box = element.closest("svg g[data-state]")?.querySelector("rect.box");
  const under = box ? parse(getComputedStyle(box).fill) : background(element);
  const style = getComputedStyle(element);
  const ink = over(parse(element.closest("svg") ? style.fill : style.color), under);
  const [dark, light] = [luminance(ink), luminance(under)].sort((a, b) => a - b);
  const contrast = (light + 0.05) / (dark + 0.05);
  if (contrast < 4.5) faint.push([text, contrast]);
}
return faint;
"""


class Flower:
    """A process of Flower. By default, the command is the one that `longshore flower` executes in its place."""

    def __init__(
        self,
        place: Installation,
        *options: str,
        command: tuple[str, ...] = ("celery", "-A", "longshore.workers", "flower", f"--conf={CONFIG}"),
        prefix: str = "",
        **environment: str,
    ) -> None:
        self.port = free_port()
        self.prefix = prefix
        self.log = place.folder / f"flower-{self.port}.log"
        given = place.environment | {"FLOWER_BASIC_AUTH": f"{USER}:{PASSWORD}"} | environment
        given = {name: value for name, value in given.items() if value or name != "FLOWER_BASIC_AUTH"}
        more = [f"--url_prefix={prefix.strip('/')}"] if prefix else []
        self.log.touch()
        self.process = fork_server().start(
            [*command, f"--port={self.port}", *more, *options], env=given, cwd=place.folder, log=self.log
        )

    def __enter__(self) -> Flower:
        wait_for(f"Flower: {self.log.read_text()}", lambda: self.get(f"{self.prefix}/healthcheck")[0] == 200)
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
    """Chromium, with the messages of its console."""

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
        """Wait for a true result. An element may disappear during a refresh of the page."""

        def attempt() -> T | None:
            with contextlib.suppress(StaleElementReferenceException, WebDriverException):
                return look()
            return None

        return wait_for(f"{what}\n{self.text()[:2000]}", attempt, 40)  # type: ignore[return-value]

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
        """The state and the colour of each step in the diagram."""
        found: Any = self.driver.execute_script(
            "return [...document.querySelectorAll('g[id^=step-]')].map(g => "
            "[g.id.slice(5), g.dataset.state, g.querySelector('rect.box').getAttribute('fill')])"
        )
        return {name: (state, fill) for name, state, fill in found}

    def theme(self, name: str) -> None:
        """Set the preference of the system: light or dark."""
        media = [{"name": "prefers-color-scheme", "value": name}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})

    def overflow(self) -> int:
        """The difference between the widths of the page and of the window, in pixels."""
        wide: Any = self.driver.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
        return int(wide)

    def colour(self, selector: str, part: str) -> str:
        """A colour of an element, such as its backgroundColor, in hexadecimal."""
        script = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
        found: Any = self.driver.execute_script(script, selector, part)
        return "#" + "".join(f"{int(number):02x}" for number in re.findall(r"\d+", found)[:3])

    def faint(self) -> list[tuple[str, float]]:
        """Each text with a contrast to its background below 4.5, and the contrast."""
        found: Any = self.driver.execute_script(_FAINT)
        return [(text, contrast) for text, contrast in found]

    def click(self, selector: str) -> None:
        self.until(f"a click on {selector}", lambda: self.one(selector).click() or True)

    def press(self, selector: str, why: str = "") -> None:
        self.click(selector)
        self.until("the question", lambda: self.one("#ask[open]"))
        self.one("#ask-why").send_keys(why)
        self.one("#ask-yes").click()

    def console_errors(self) -> list[str]:
        """Errors and warnings of the console."""
        known: Any = self.driver.get_log("browser")
        return [
            one["message"] for one in known if one["level"] in {"SEVERE", "WARNING"} and "favicon" not in one["message"]
        ]

    def requested_hosts(self) -> set[str]:
        """The hosts of all requests of the pages."""
        hosts = set()
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                url = message["params"]["request"]["url"]
                if url.startswith("http"):
                    hosts.add(url.split("/")[2].rpartition("@")[2].partition(":")[0])
        return hosts
