"""The pages as Markdown for readers without a browser: the first sentence of a page, and the Python API as text."""

from __future__ import annotations

import re
from functools import cache

import griffe

_DIRECTIVE = re.compile(r"^::: (\S+)$", re.M)
#: The signature of an object before its directive.
_SIGNATURE = re.compile(r"^```text\n(?:(?!```).*\n)+```\n\n(?=::: )", re.M)
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
#: Blocks of a page that are no paragraph: headings, lists, tables, quotes, code, admonitions, HTML, directives.
_NO_PARAGRAPH = ("#", "- ", "* ", "|", ">", "```", "!!!", "???", "<", ":::", "===", "1. ")


def first_sentence(text: str) -> str:
    """The first sentence of a docstring or of the first paragraph of a page, as one line; empty where none is found."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    for block in re.split(r"\n\s*\n", prose.strip()):
        if block.strip() and not block.lstrip().startswith(_NO_PARAGRAPH):
            line = " ".join(_LINK.sub(r"\1", block).split())
            return re.split(r"(?<=[.!?])\s", line, maxsplit=1)[0].rstrip(":")
    return ""


def with_signatures(markdown: str) -> str:
    """A page with the signature of each object before its directive, for readers of the page in the repository."""

    def signed(directive: re.Match[str]) -> str:
        return "\n".join(["```text", *_signatures(_object(directive[1])), "```", "", directive[0]])

    return _DIRECTIVE.sub(signed, markdown)


def without_signatures(markdown: str) -> str:
    """A page as it was before `with_signatures`: mkdocstrings writes the signatures itself."""
    return _SIGNATURE.sub("", markdown)


def with_api(markdown: str) -> str:
    """A page with the signatures and first sentences of its objects in the place of the directives for them."""
    return _DIRECTIVE.sub(lambda directive: _described(_object(directive[1])), without_signatures(markdown))


@cache
def _code() -> griffe.ModulesCollection:
    code = griffe.GriffeLoader()
    for package in ("longshore.orchestration", "longshore.tasks"):
        code.load(package)
    return code.modules_collection


def _object(path: str) -> griffe.Object:
    found: griffe.Object = _code()[path]
    return found


def _signatures(found: griffe.Object) -> list[str]:
    """The signature of an object; of a class, also that of its constructor."""
    signatures = [_signature(found)]
    if found.is_class and "__init__" in found.members:
        signatures.append(_signature(found["__init__"]).replace("__init__", found.name).removesuffix(" -> None"))
    return signatures


def _described(found: griffe.Object) -> str:
    lines = [f"### {found.name}", "", "```python", *_signatures(found), "```", "", _summary(found), ""]
    if found.is_class:
        public = [each for name, each in found.members.items() if not name.startswith("_")]
        members = [each for each in public if each.is_function or (each.is_attribute and each.annotation)]
        lines += [f"- `{_signature(each)}`: {_summary(each)}".rstrip(": ") for each in members]
    return "\n".join(lines).rstrip()


def _signature(found: griffe.Object) -> str:
    if isinstance(found, griffe.Function):
        prefix = "async " if "async" in found.labels else ""
        return f"{prefix}{found.signature()}".replace("(self, ", "(").replace("(self)", "()")
    if isinstance(found, griffe.Class):
        bases = ", ".join(map(str, found.bases))
        return f"class {found.name}({bases})" if bases else f"class {found.name}"
    annotation = getattr(found, "annotation", None)
    return f"{found.name}: {annotation}" if annotation else found.name


def _summary(found: griffe.Object) -> str:
    return first_sentence(found.docstring.value) if found.docstring else ""
