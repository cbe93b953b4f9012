"""Longshore's pages inside Flower, behind its login: the list of runs, and one run with diagram, timeline, buttons."""

from __future__ import annotations

import logging
import os
import re
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import tornado.template
from flower import urls
from flower.app import Flower
from tornado.httputil import HTTPServerRequest
from tornado.web import ErrorHandler, StaticFileHandler, url

from longshore.orchestration.language import printable
from longshore.workers.flower_pages import pages

HERE = Path(__file__).parent
_FLOWERS = Path(str(urls.settings["template_path"]))
#: The resolved folder: Tornado serves no symbolic links, which an editable install consists of.
_STATIC = (HERE / "static" / "longshore.js").resolve().parent
#: The element of Flower's navigation bar that gets the entry Runs.
_WORKERS = '<ul class="app-nav navbar-nav">'
_ENTRY = """
        <li class="nav-item">
          <a class="nav-link{% if active_tab == 'runs' %} active{% end %}" href="{{ reverse_url('runs') }}"
            {% if active_tab == 'runs' %}aria-current="page"{% end %}>Runs</a>
        </li>"""


class _Loader(tornado.template.Loader):
    """Loads Longshore's templates beside Flower's, and adds an entry to the navigation bar."""

    def _create_template(self, name: str) -> tornado.template.Template:
        ours = HERE / "templates" / name
        text = (ours if ours.is_file() else _FLOWERS / name).read_text("utf-8")
        if name == "navbar.html":
            text = text.replace(_WORKERS, _WORKERS + _ENTRY, 1)
        return tornado.template.Template(text, name=name, loader=self)


#: Names of this machine that no name server of another machine resolves.
_LOCAL = {"localhost", "127.0.0.1", "::1"}
_SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}


def refused(request: HTTPServerRequest, options: Any) -> bool:
    """Report whether a request comes from another site's page; applies to Flower's own pages too.

    Without a login every client of the port is trusted, and DNS rebinding may lead a browser to it. A request that
    changes something must come from a page of the same origin, or from no page.
    """
    origin, site = request.headers.get("Origin"), request.headers.get("Sec-Fetch-Site", "same-origin")
    try:
        host, asking = urlsplit(f"//{request.host}").hostname, urlsplit(origin or "").netloc.lower()
    except ValueError:
        return True
    if not (options.basic_auth or options.auth or options.unix_socket) and host not in _LOCAL:
        return True
    if request.method in _SAFE_METHODS:
        return False
    return (origin is not None and asking != request.host.lower()) or site not in {"same-origin", "none"}


def _guard() -> None:
    """Check every request before Flower routes it."""
    find = Flower.find_handler

    def find_handler(self: Flower, request: HTTPServerRequest, **given: Any) -> Any:
        if refused(request, self.options):
            return self.get_handler_delegate(request, ErrorHandler, {"status_code": 403})
        return find(self, request, **given)

    Flower.find_handler = find_handler


#: Seconds from the signal to the end of Flower, if Redis does not answer.
_SHUTDOWN = 3.0


def _end_after_signal() -> None:
    """Make Flower end after one signal, even if Redis does not answer.

    At the end of the process, Python waits for the threads of Flower's executor, which send commands to the workers.
    Without an answer of Redis, these threads do not end.
    """
    start = Flower.start

    def start_until_signal(self: Flower) -> None:
        try:
            start(self)
        except (KeyboardInterrupt, SystemExit):
            timer = threading.Timer(_SHUTDOWN, _exit)
            timer.daemon = True
            timer.start()
            self.stop()  # stores the events of a persistent Flower
            raise

    Flower.start = start_until_signal


def _exit() -> None:
    """End the process without waiting for threads."""
    logging.shutdown()
    os._exit(0)


def install() -> None:
    """Add the pages to Flower; call before Flower's application is created."""
    if any(getattr(handler, "name", None) == "runs" for handler in urls.handlers):
        return
    _guard()
    _end_after_signal()
    urls.settings["template_loader"] = _Loader(str(_FLOWERS))
    urls.handlers[:0] = [
        url(r"/runs", pages.Runs, name="runs"),
        url(r"/runs/([^/]+)", pages.OneRun, name="run"),
        url(r"/runs/([^/]+)/log", pages.Log, name="log"),
        url(r"/runs/([^/]+)/(cancel|resume|undo|approve|reject)", pages.Command),
        url(r"/longshore/(.*)", StaticFileHandler, {"path": str(_STATIC)}, name="longshore"),
    ]


#: A probable secret in the arguments of a foreign task.
_SECRET = re.compile(
    r"""((?:pass(?:word|wd)?|secret|token|api_?key|credential)\w*['"]?\s*[:=]\s*)('[^']*'|"[^"]*"|[^\s,)}\]]+)""", re.I
)


def format_task(task: Any) -> Any:
    """Mask probable secrets in a task that Flower shows. (Longshore's tasks show ids only.)"""
    for name in ("args", "kwargs", "result", "exception", "traceback"):
        text = getattr(task, name, None)
        if isinstance(text, str):
            setattr(task, name, printable.lines(_SECRET.sub(r"\1***", text)))
    return task
