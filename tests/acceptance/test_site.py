"""The strict build of the site, its links and pages, and the completeness of the reference."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from docs._site import diagrams
from docs._site.reference import FOLDER, PAGES
from tests.acceptance.pages import DOCS, ROOT

pytestmark = pytest.mark.integration


class Links(HTMLParser):
    """The ids and the link targets of a page of the site."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.targets: list[str] = []
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids.update(filter(None, (found.get("id"), found.get("name"))))
        self.targets += filter(None, (found.get("href") if tag == "a" else found.get("src"),))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [Path(sys.executable).with_name("mkdocs"), "--quiet", "build", "--strict", "--site-dir", folder],
        cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_links_of_the_site_have_targets(site: Path) -> None:
    pages = {page: Links(page) for page in site.rglob("*.html") if page.name != "404.html"}
    dead = []
    for page, links in pages.items():
        for target in links.targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            to = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            to = to / "index.html" if to.is_dir() else to
            has_anchor = not parts.fragment or to not in pages or unquote(parts.fragment) in pages[to].ids
            if not to.exists() or not has_anchor:
                dead.append(f"{page.relative_to(site)}: {target}")

    assert len(pages) > 20
    assert dead == []


def test_links_of_the_markdown_copies_stay_in_the_site(site: Path) -> None:
    links = [
        (page, target.partition("#")[0])
        for page in site.rglob("*.md")
        for target in re.findall(r"(?<!!)\[[^\]]*\]\(([^)\s#]+)[^)]*\)", page.read_text())
        if "://" not in target and not target.startswith("mailto:")
    ]

    assert len(links) > 100
    assert [f"{page.relative_to(site)}: {target}" for page, target in links if not _within(site, page, target)] == []


def _within(site: Path, page: Path, target: str) -> bool:
    to = (page.parent / unquote(target)).resolve()
    return to.is_relative_to(site.resolve()) and to.exists()


def test_every_page_is_in_the_navigation_and_in_llms_txt(site: Path) -> None:
    listed = set(re.findall(r"\(([^)]+\.md)\)", (site / "llms.txt").read_text()))

    assert listed == {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    assert all((site / page).is_file() for page in listed)


def test_llms_txt_describes_each_page_in_a_sentence(site: Path) -> None:
    lines = [line for line in (site / "llms.txt").read_text().splitlines() if line.startswith("- ")]
    described = dict(re.fullmatch(r"- \[.+?\]\((.+?)\)(?:: (.+[.!?…]))?", line).groups() for line in lines)  # type: ignore[union-attr]
    pages = {page for page in described if len((DOCS / page).read_text().split()) > 50}

    assert len(pages) > 20
    assert [page for page in sorted(pages) if not described[page]] == []


def test_markdown_of_the_api_has_signatures_instead_of_directives(site: Path) -> None:
    text = (site / "reference" / "python.md").read_text()

    assert "\n::: " not in text
    assert (
        "- `wait(timeout: float | None = None, *, check: bool = False, hooks: Hooks | None = None) -> Report`: " in text
    )
    assert text.count("\n### ") >= len(re.findall(r"^::: ", (FOLDER / "python.md").read_text(), re.M))


def test_signatures_of_the_page_in_the_repository_are_not_shown_twice_on_the_site(site: Path) -> None:
    signature = "load(name: str, *, check: bool = True) -> Plan"
    html = (site / "reference" / "python.html").read_text()
    text = unescape(re.sub(r"<[^>]+>", "", html))

    assert f"```text\n{signature}\n```\n\n::: " in (FOLDER / "python.md").read_text()
    assert len(re.findall(r"\bload\(\s*name\b", text)) == 1
    assert (site / "reference" / "python.md").read_text().count(signature) == 1


def test_fields_of_the_page_in_the_repository_are_not_shown_twice_on_the_site(site: Path) -> None:
    field = "duration_s: float | None"
    text = (site / "reference" / "python.md").read_text()
    html = unescape(re.sub(r"<[^>]+>", "", (site / "reference" / "python.html").read_text()))
    blocks = re.findall(r"^```text\n(.*?)^```$", (FOLDER / "python.md").read_text(), re.M | re.S)

    for name in ("Report", "StepReport"):
        assert [f"    {field}\n" in block for block in blocks if block.startswith(f"class {name}(")] == [True]
    assert "    target: str | None\n" in next(block for block in blocks if block.startswith("class Step("))
    # a constructor shows the fields of its dataclass
    assert [block.count("changed: ") for block in blocks if block.startswith("class Result\n")] == [1]
    assert f"    {field}" not in text
    assert text.count(f"- `{field}`") == 2
    assert f"    {field}\n" not in html


def test_pages_of_the_reference_are_current(tmp_path: Path) -> None:
    # In a separate process, because other tests register operations.
    subprocess.run([sys.executable, "-m", "docs._site.reference", tmp_path], cwd=ROOT, check=True)

    assert len(PAGES) > 5
    for name in PAGES:
        assert (FOLDER / name).read_text() == (tmp_path / name).read_text(), f"{name}: make docs writes the page"


def test_each_diagram_has_a_drawing() -> None:
    drawn = {file.name for file in diagrams.FOLDER.glob("*.svg")}

    assert drawn == set(diagrams.texts()), "make diagrams draws them"


def test_every_public_name_has_an_entry(site: Path) -> None:
    ids = Links(site / "reference" / "python.html").ids
    wanted = re.findall(r"^::: (\S+)", (FOLDER / "python.md").read_text(), re.M)

    assert len(wanted) > 50
    assert set(wanted) <= ids
