"""Pages of ours inside Flower, behind its login: the runs, and one run with its picture, its times and its buttons."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import tornado.template
from flower import urls
from flower.app import Flower
from tornado.httputil import HTTPServerRequest
from tornado.web import ErrorHandler, StaticFileHandler, url

from longshore.orchestration.language import printable

HERE = Path(__file__).parent
_FLOWERS = Path(str(urls.settings["template_path"]))
#: Where they are in truth: Tornado gives out nothing by way of a link, and an editable install is made of those.
_STATIC = (HERE / "static" / "longshore.js").resolve().parent
#: Where Flower's bar is open to one entry more.
_WORKERS = '<ul class="app-nav navbar-nav">'
_ENTRY = """
        <li class="nav-item">
          <a class="nav-link{% if active_tab == 'runs' %} active{% end %}" href="{{ reverse_url('runs') }}"
            {% if active_tab == 'runs' %}aria-current="page"{% end %}>Runs</a>
        </li>"""


class _Loader(tornado.template.Loader):
    """Our templates beside Flower's, whose bar gets one entry more."""

    def _create_template(self, name: str) -> tornado.template.Template:
        ours = HERE / "templates" / name
        text = (ours if ours.is_file() else _FLOWERS / name).read_text("utf-8")
        if name == "navbar.html":
            text = text.replace(_WORKERS, _WORKERS + _ENTRY, 1)
        return tornado.template.Template(text, name=name, loader=self)


#: Names of this machine that no other machine's name server answers.
_LOCAL = {"localhost", "127.0.0.1", "::1"}
_LOOKS = {"GET", "HEAD", "OPTIONS"}


def refused(request: HTTPServerRequest, options: Any) -> bool:
    """Whether another site's page asks, by way of a browser on this machine: of Flower's own pages as well as ours.

    Without a login whoever reaches the port is trusted, and a name of the attacker's may lead a browser to it. What
    changes something is asked for by a page of the same origin, or by no page at all.
    """
    origin, site = request.headers.get("Origin"), request.headers.get("Sec-Fetch-Site", "same-origin")
    try:
        host, asking = urlsplit(f"//{request.host}").hostname, urlsplit(origin or "").netloc.lower()
    except ValueError:
        return True
    if not (options.basic_auth or options.auth or options.unix_socket) and host not in _LOCAL:
        return True
    if request.method in _LOOKS:
        return False
    return (origin is not None and asking != request.host.lower()) or site not in {"same-origin", "none"}


def _guard() -> None:
    """Have the application ask before it looks for a page."""
    find = Flower.find_handler

    def find_handler(self: Flower, request: HTTPServerRequest, **given: Any) -> Any:
        if refused(request, self.options):
            return self.get_handler_delegate(request, ErrorHandler, {"status_code": 403})
        return find(self, request, **given)

    Flower.find_handler = find_handler


def install() -> None:
    """Have Flower serve them. To be called before Flower's application is made."""
    from longshore.workers.flower_pages import pages  # noqa: PLC0415 - it imports this

    if any(getattr(handler, "name", None) == "runs" for handler in urls.handlers):
        return
    _guard()
    urls.settings["template_loader"] = _Loader(str(_FLOWERS))
    urls.handlers[:0] = [
        url(r"/runs", pages.Runs, name="runs"),
        url(r"/runs/([^/]+)", pages.OneRun, name="run"),
        url(r"/runs/([^/]+)/(cancel|resume|undo|approve|reject)", pages.Command),
        url(r"/longshore/(.*)", StaticFileHandler, {"path": str(_STATIC)}, name="longshore"),
    ]


#: What looks like a secret in the arguments of a task that is not ours.
_SECRET = re.compile(
    r"""((?:pass(?:word|wd)?|secret|token|api_?key|credential)\w*['"]?\s*[:=]\s*)('[^']*'|"[^"]*"|[^\s,)}\]]+)""", re.I
)


def format_task(task: Any) -> Any:
    """A task as Flower shows it: what looks like a secret is hidden. (Ours show ids only.)"""
    for name in ("args", "kwargs", "result", "exception", "traceback"):
        text = getattr(task, name, None)
        if isinstance(text, str):
            setattr(task, name, printable.lines(_SECRET.sub(r"\1***", text)))
    return task
