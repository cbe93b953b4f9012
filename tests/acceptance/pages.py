"""Plays a page of the documents: writes its files, runs its commands and code in order, and compares the output.

The fences of a page:

- `title="PATH"`: a file of the user, in the folder of the page.
- `sh`: commands, which end without an error. With `title="Terminal 2"`, the commands run in a terminal of this name.
  With a title that ends in `(stays open)`, the commands run in the background until the page ends, or until the next
  block of this terminal. Before this block, the commands receive Ctrl-C.
- `console`: commands after `$ `, each followed by lines of its output. `…` matches any text, or any line. Consecutive
  blanks count as one, because the width of a column depends on its values. A command that only reads (`READING`) is
  repeated until its output is correct.
- `python`: code that runs in one interpreter per page.
- `text` directly after `sh` or `python`: lines of the output, as in `console`. After commands in the background, the
  player waits for the lines.
- `yaml` and `json` without a title: valid text, not executed. Other languages, such as `mermaid`, are ignored.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.integration.processes import fork_server
from tests.servers import SOON, free_port, redis_program

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>[a-z]+)(?P<attributes>[^\n]*)\n(?P<body>.*?)^(?P=indent)```", re.M | re.S
)
_TITLE = re.compile(r'title="([^"]+)"')

#: The URL of Redis on the pages.
REDIS = "redis://localhost:6379/0"
#: Seconds within which a command prints the lines of a page.
PATIENCE = 60.0
#: Commands that the player repeats until their output is correct.
READING = re.compile(r"(?:cat|tail|ls|longshore (?:runs (?:show|ls|events|logs)|job ls))\b")
#: The port of a Redis that a page starts itself; the player chooses a free one.
OWN_PORT = "6380"
#: The port of a web server that a page starts; the player chooses a free one.
WEB_PORT = "8000"

_PYTHON = """
import sys, traceback
space = {"__name__": "__main__"}
while size := sys.stdin.buffer.readline():
    code, status = sys.stdin.buffer.read(int(size)).decode(), 0
    try:
        exec(compile(code, "page", "exec"), space)
    except BaseException:
        traceback.print_exc(file=sys.stdout)
        status = 1
    print(f"\\0{status}", flush=True)
"""

_PIP = """#!{python}
import re, shutil, sys, tomllib
from importlib.metadata import distribution
from pathlib import Path
for wanted in sys.argv[2:]:
    if wanted.startswith("./"):
        project, site = tomllib.loads(Path(wanted, "pyproject.toml").read_text())["project"], Path("{site}")
        for module in Path(wanted).glob("*.py"):
            shutil.copy(module, site)
        info = site / f"{{project['name']}}-{{project['version']}}.dist-info"
        info.mkdir()
        lines = [line for group, points in project["entry-points"].items() for line in
                 (f"[{{group}}]", *(f"{{name}} = {{value}}" for name, value in points.items()))]
        (info / "entry_points.txt").write_text("\\n".join(lines))
        continue
    name, extras = re.fullmatch(r"([\\w-]+)(?:\\[([\\w,]+)\\])?", wanted).groups()
    known = distribution(name).metadata.get_all("Provides-Extra") or []
    assert set((extras or "").split(",")) - {{""}} <= set(known), f"{{wanted}}: no such extra"
"""


class PageError(AssertionError):
    """A command, code or output of a page is wrong."""


@dataclass(frozen=True)
class Block:
    language: str
    title: str
    body: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    found = []
    for fence in _FENCE.finditer(text):
        title = _TITLE.search(fence["attributes"])
        body = re.sub(rf"^{fence['indent']}", "", fence["body"], flags=re.M)
        line = text.count("\n", 0, fence.start()) + 1
        found.append(Block(fence["language"], title[1] if title else "", body, line))
    return found


def missing_line(printed: str, expected: str) -> str | None:
    """The first expected line that is missing in the output, or None. The lines have to be in the same order."""
    lines = [re.sub(r"\s+", " ", line.rstrip()) for line in printed.splitlines()]
    at = 0
    for wanted in filter(None, (line.rstrip() for line in expected.splitlines())):
        if wanted.strip() == "…":
            continue
        pattern = re.compile(".*".join(map(re.escape, re.sub(r"\s+", " ", wanted).split("…"))))
        found = next((i for i in range(at, len(lines)) if pattern.fullmatch(lines[i])), None)
        if found is None:
            return wanted
        at = found + 1
    return None


class Player:
    """Plays the blocks of one page in a folder. `redis_url` replaces the URL on the page.

    With `installed`, the page calls the installed program `longshore`. Otherwise, the fork server runs the commands.
    """

    def __init__(
        self, page: Path, folder: Path, redis_url: str, env: dict[str, str], *, installed: bool = False
    ) -> None:
        self.page = page
        self.folder = folder
        self.redis_url = redis_url
        self.own_port = free_port()
        self.web_port = free_port()
        programs = folder / ".programs"
        programs.mkdir()
        (programs / "pip").write_text(_PIP.format(python=sys.executable, site=folder))
        (programs / "pip").chmod(0o755)
        (programs / "redis-server").symlink_to(redis_program())
        if not installed:
            fork_server().write_program(programs / "longshore")
        own = {"PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(folder)}
        self.env = env | own | {"PYTHONUNBUFFERED": "1", "COLUMNS": "120"}
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self.printed = ""
        #: The log of the last block and the offset of its output, if its commands run in the background.
        self.log: tuple[Path, int] | None = None

    def play(self, chosen: list[Block] | None = None) -> None:
        """Play all blocks of the page, or the given blocks, and end the processes of the page."""
        try:
            self.play_blocks(blocks(self.page) if chosen is None else chosen)
        finally:
            self.close()

    def play_blocks(self, chosen: list[Block]) -> None:
        """Play blocks without an end of the page's processes."""
        for block in chosen:
            self._play(block)

    def close(self) -> None:
        """End all processes of the page."""
        for process in self.processes.values():
            self._end(process, signal.SIGTERM)

    def _end(self, process: subprocess.Popen[str], how: signal.Signals) -> None:
        """End a process group by a signal, and by SIGKILL after a time limit."""
        until = time.monotonic() + SOON
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)
            while time.monotonic() < until:
                process.poll()
                os.killpg(process.pid, 0)
                time.sleep(0.05)
            os.killpg(process.pid, signal.SIGKILL)
        for pipe in filter(None, (process.stdin, process.stdout)):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        process.wait()

    def _play(self, block: Block) -> None:
        ours = {REDIS: self.redis_url, OWN_PORT: str(self.own_port), WEB_PORT: str(self.web_port)}
        # In one pass, because a port of the player may contain a port of the page.
        body = re.sub("|".join(map(re.escape, ours)), lambda found: ours[found[0]], block.body)
        is_terminal = block.title.startswith("Terminal")
        log, self.log = self.log, None
        if block.title and not is_terminal:
            file = self.folder / block.title
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(body)
        elif block.language == "sh" and block.title.endswith("(stays open)"):
            self._background(block, body)
        elif block.language == "sh":
            status = self._run(block, body)
            if status:
                raise self._error(block, f"exit code {status}")
        elif block.language == "python":
            if self._send("python", f"{len(body.encode())}\n{body}"):
                raise self._error(block, "the code failed")
        elif block.language == "console":
            for part in re.split(r"^\$ ", body, flags=re.M)[1:]:
                command, _, output = part.partition("\n")
                while command.endswith("\\"):
                    more, _, output = output.partition("\n")
                    command += "\n" + more
                self._console(block, command, output)
        elif block.language == "text":
            self._wait_for(block, body, *log) if log else self._compare(block, body)
        elif block.language in {"yaml", "json"}:
            list(yaml.safe_load_all(body))

    def _console(self, block: Block, command: str, output: str) -> None:
        end, pause = time.monotonic() + PATIENCE * bool(READING.match(command)), 0.2
        while True:
            status = self._run(block, command)
            try:
                if status and not output.strip():
                    raise self._error(block, f"exit code {status} of: {command}")
                return self._compare(block, output)
            except PageError:
                if time.monotonic() >= end:
                    raise
            time.sleep(pause)
            # The command costs more processor time than most of what it waits for.
            pause = min(2 * pause, 3.0)

    def _background(self, block: Block, body: str) -> None:
        if earlier := self.processes.pop(block.title, None):
            self._end(earlier, signal.SIGINT)
        log = self.folder / f".{block.title.partition(' (')[0].replace(' ', '-').lower()}.log"
        with log.open("a") as out:
            self.log = log, out.tell()
            self.processes[block.title] = subprocess.Popen(
                ["bash", "-e", "-c", body], cwd=self.folder, env=self.env, stdin=subprocess.DEVNULL, stdout=out,
                stderr=out, text=True, start_new_session=True,
            )  # fmt: skip

    def _run(self, block: Block, command: str) -> int:
        report = "page_status=$?; printf '\\0%d\\n' $page_status; (exit $page_status)"  # the next command may read $?
        return self._send(block.title or "shell", f"{{\n{command}\n}} 2>&1 </dev/null; {report}\n")

    def _send(self, name: str, text: str) -> int:
        """Run a text in a shell or in the interpreter, store the output in `printed`, and return the exit code."""
        if name not in self.processes:
            command = [sys.executable, "-c", _PYTHON] if name == "python" else ["bash"]
            self.processes[name] = subprocess.Popen(
                command, cwd=self.folder, env=self.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, text=True, start_new_session=True,
            )  # fmt: skip
        process = self.processes[name]
        assert process.stdin
        assert process.stdout
        process.stdin.write(text)
        process.stdin.flush()
        self.printed = ""
        for line in process.stdout:
            text, end, status = line.partition("\0")
            self.printed += text
            if end:
                return int(status)
        raise PageError(f"{self.page.relative_to(ROOT)}: {name} ended:\n{self.printed}")

    def _wait_for(self, block: Block, expected: str, log: Path, start: int) -> None:
        deadline = time.monotonic() + PATIENCE
        while missing := missing_line(log.read_bytes()[start:].decode(), expected):
            if time.monotonic() > deadline:
                raise self._error(block, f"the line {missing!r} has not appeared in {PATIENCE:g} s")
            time.sleep(0.1)

    def _compare(self, block: Block, expected: str) -> None:
        if missing := missing_line(self.printed, expected):
            raise self._error(block, f"the output lacks the line {missing!r}")

    def _error(self, block: Block, what: str) -> PageError:
        logs = "".join(f"\n--- {log.name}\n{log.read_text()[-3000:]}" for log in sorted(self.folder.glob(".*.log")))
        where = f"{self.page.relative_to(ROOT)}:{block.line}"
        return PageError(f"{where}: {what}\n--- the output\n{self.printed[-5000:]}{logs}")
