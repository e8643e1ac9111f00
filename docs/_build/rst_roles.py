"""Griffe extension: the roles and formulas of kdkit's docstrings, which are reStructuredText, as Markdown."""

from __future__ import annotations

import re
from typing import Any

import griffe

_BLOCK = re.compile(r"^(?P<indent> *)\.\. math::(?P<first>.*)\n(?P<rest>(?:(?P=indent) +\S.*(?:\n|$))*)", re.MULTILINE)
_INLINE = re.compile(r":math:`([^`]+)`")
_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):`(~?)([^`]+)`")


class RstRoles(griffe.Extension):
    """Rewrites each docstring once it is read."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Griffe calls this for every module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(text: str) -> str:
    """A docstring with ``.. math::``, ``:math:`` and ``:class:``-like roles in Markdown's words."""
    text = _BLOCK.sub(_display, text)
    text = _INLINE.sub(lambda match: f"${' '.join(match[1].split())}$", text)
    return _ROLE.sub(_reference, text)


def _display(match: re.Match[str]) -> str:
    indent = match["indent"]
    latex = " ".join(f"{match['first']} {match['rest']}".split())
    return f"{indent}$$\n{indent}{latex}\n{indent}$$\n"


def _reference(match: re.Match[str]) -> str:
    short, target = match[1], match[2]
    shown = target.rsplit(".", 1)[-1] if short else target
    if not target.startswith("kdkit."):
        return f"`{shown}`"
    owner, member = target.rsplit(".", 1)
    return f"[`{shown}`][{owner if owner.rsplit('.', 1)[-1][0].isupper() else f'{owner}.{member}'}]"
