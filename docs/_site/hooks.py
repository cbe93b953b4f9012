"""Hooks of MkDocs: links to files of the repository, the Markdown of each page, and llms.txt."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from diagrams import FENCE, name_of
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.nav import Navigation
from mkdocs.structure.pages import Page
from page_text import first_sentence, with_api, without_signatures

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
#: Folder of the site with the linked files of the repository.
SOURCE = "source"

_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")

_linked: set[Path] = set()
#: The first sentence of each page, by its path.
_pages: dict[str, str] = {}
_order: list[Any] = []


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Let a link to a file outside the docs lead to a copy of the file in the site; a linked folder becomes text.

    Diagrams become drawings, and signatures before directives are removed.
    """
    up = "../" * page.file.dest_uri.count("/")

    def as_html(text: str, address: str) -> str:
        return f'<a href="{address}">{text.strip("`")}</a>'

    def drawing(diagram: re.Match[str]) -> str:
        return f"![A diagram of this section]({up}diagrams/{name_of(diagram[1])}){{ .diagram }}\n"

    _pages[page.file.src_uri] = first_sentence(markdown)
    return FENCE.sub(drawing, _with_source_links(without_signatures(markdown), page.file.src_uri, as_html))


def _with_source_links(markdown: str, uri: str, write: Callable[[str, str], str]) -> str:
    """A page whose links to files outside the docs lead to the copies of the files in the site.

    `write` returns a link with a text and an address.
    """
    up = "../" * uri.count("/")

    def rewrite(link: re.Match[str]) -> str:
        text, target, _ = link.groups()
        path = ((DOCS / uri).parent / target).resolve()
        if "://" in target or target.startswith("mailto:") or path.is_relative_to(DOCS):
            return link[0]
        if not path.exists() or not path.is_relative_to(ROOT):
            raise PluginError(f"{uri}: the link to {target} leads nowhere")
        if path.is_dir():
            return text
        _linked.add(path)
        return write(text, f"{up}{SOURCE}/{quote(str(path.relative_to(ROOT)))}")

    return _LINK.sub(rewrite, markdown)


def on_nav(nav: Navigation, **_: Any) -> None:
    """Remember the order of the pages for llms.txt."""
    _order[:] = nav.items


def _pages_of(item: Any) -> Iterator[Page]:
    """The pages of an entry of the navigation, in order."""
    if isinstance(item, Page):
        yield item
    for child in item.children or []:
        yield from _pages_of(child)


def on_post_build(config: MkDocsConfig) -> None:
    """Add the linked files, the Markdown of each page, and llms.txt, which lists the pages for language models."""
    site = Path(config.site_dir)
    for path in sorted(_linked):
        copy = site / SOURCE / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    lines = [f"# {config.site_name}", "", f"> {config.site_description}"]
    for item in _order:
        pages = list(_pages_of(item))
        if not isinstance(item, Page):
            lines += ["", f"## {item.title}", ""]
        elif item is _order[0]:
            lines += ["", "## Start", ""]
        for page in pages:
            uri = page.file.src_uri
            lines.append(f"- [{page.title}]({uri}): {_pages[uri]}".removesuffix(": "))
    (site / "llms.txt").write_text("\n".join(lines) + "\n")
    for uri in _pages:
        copy = site / uri
        copy.parent.mkdir(parents=True, exist_ok=True)
        markdown = _with_source_links((DOCS / uri).read_text(), uri, lambda text, address: f"[{text}]({address})")
        copy.write_text(with_api(markdown))
