"""Draws the Mermaid diagrams of the pages as docs/diagrams/*.svg, so that the site shows them without network.

`make diagrams` runs the module with Mermaid's script as its argument. A diagram has the name of its text's digest; the
site puts the drawing in the place of the text, and a test demands a drawing for each diagram.
"""

from __future__ import annotations

import hashlib
import re
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1]
FOLDER = DOCS / "diagrams"
FENCE = re.compile(r"^```mermaid\n(.*?)^```\n?", re.M | re.S)
_OPTIONS = {"startOnLoad": False, "theme": "neutral", "htmlLabels": False, "flowchart": {"htmlLabels": False}}
_SCRIPT = """
const [text, options, done] = arguments;
mermaid.initialize(options);
mermaid.render("diagram", text).then(drawn => done(drawn.svg), error => done("error: " + error));
"""


def name_of(text: str) -> str:
    """The file of a diagram, by its text."""
    return f"{hashlib.sha256(text.encode()).hexdigest()[:12]}.svg"


def texts() -> dict[str, str]:
    """The text of each diagram of the pages, by the name of its file."""
    found = (text for page in DOCS.rglob("*.md") for text in FENCE.findall(page.read_text()))
    return {name_of(text): text for text in found}


def draw(script: Path) -> None:
    """Draw what is missing, and remove what no page has any more."""
    from tests.integration.flower import Browser  # noqa: PLC0415 - the site is built without a browser

    wanted = texts()
    FOLDER.mkdir(exist_ok=True)
    for file in FOLDER.glob("*.svg"):
        if file.name not in wanted:
            file.unlink()
    with tempfile.TemporaryDirectory() as folder:
        browser = Browser(Path(folder) / "profile")
        page = Path(folder) / "page.html"
        page.write_text(f'<!doctype html><body><script src="{script.resolve().as_uri()}"></script></body>')
        browser.open(page.as_uri())
        for name, text in wanted.items():
            if (FOLDER / name).exists():
                continue
            drawn = str(browser.driver.execute_async_script(_SCRIPT, text, _OPTIONS))
            if not drawn.startswith("<svg"):
                raise SystemExit(f"{text}\n{drawn}")
            (FOLDER / name).write_text(drawn + "\n")
        browser.driver.quit()


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
