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
    """A page with the signature of each object, and the fields of each model and dataclass, before its directive.

    For readers of the page in the repository.
    """

    def signed(directive: re.Match[str]) -> str:
        found = _object(directive[1])
        first, *others = _signatures(found)
        return "\n".join(["```text", first, *_fields(found), *others, "```", "", directive[0]])

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


def _fields(found: griffe.Object) -> list[str]:
    """The public fields of a model or dataclass that no signature of a constructor shows, a line each."""
    if not isinstance(found, griffe.Class) or not ("dataclass" in found.labels or _is_model(found)):
        return []
    shown = {each.name for each in found["__init__"].parameters} if "__init__" in found.members else set()
    fields = [each for name, each in found.attributes.items() if not name.startswith("_") and name not in shown]
    return [
        f"    {each.name}: {_plain_type(each.annotation)}"
        for each in fields
        if each.annotation and "property" not in each.labels
    ]


def _is_model(found: griffe.Class) -> bool:
    """Report whether the class is a model of pydantic. Settings are none: they have a page of their own."""
    if any(isinstance(base, griffe.Expr) and base.canonical_path == "pydantic.BaseModel" for base in found.bases):
        return True
    return any(isinstance(base, griffe.Class) and _is_model(base) for base in found.resolved_bases)


def _plain_type(annotation: str | griffe.Expr) -> str:
    """A type without the metadata of `Annotated`."""
    if isinstance(annotation, griffe.ExprBinOp):
        return f"{_plain_type(annotation.left)} {annotation.operator} {_plain_type(annotation.right)}"
    if isinstance(annotation, griffe.ExprSubscript) and str(annotation.left) == "Annotated":
        inside = annotation.slice
        return _plain_type(inside.elements[0] if isinstance(inside, griffe.ExprTuple) else inside)
    return str(annotation)


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
