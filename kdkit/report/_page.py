"""Pages from templates: one self-contained HTML file and its Markdown twin."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdkit import __version__
from kdkit._files import write_atomic

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

__all__ = ["Picture", "render_markdown", "write_page"]

_STICKY = re.compile(r"(?<=\d) (?=[%±]|points|[kMG]\b|m?s\b|min\b)|(?<=[±=<]) (?=\d)|(?<=\bp) (?=[=<])")
"""Spaces at which a line must not break."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure, ready for a page.

    Attributes:
        name: file name without ending.
        title: heading above it.
        caption: what to look for; also the text for those who cannot see it.
        svg, png: the same drawing twice.
        wide: takes the whole width of the page.
    """

    name: str
    title: str
    caption: str
    svg: bytes
    png: bytes
    wide: bool = False

    @property
    def source(self) -> str:
        """The drawing as a ``data:`` address."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg).decode()


def write_page(
    folder: Path,
    name: str,
    template: str,
    content: Mapping[str, Any],
    pictures: Sequence[Picture] = (),
    templates: Path | None = None,
) -> Path:
    """Write ``<name>.html``, ``<name>.md`` and ``plots/*.png`` into a folder; returns the HTML file.

    ``templates`` is a further folder to find templates in, which may build on those here.
    """
    context = {**content, "pictures": {picture.name: picture for picture in pictures}, "version": __version__}
    for picture in pictures:
        write_atomic(folder / "plots" / f"{picture.name}.png", picture.png)
    environment = _environment(templates)
    write_atomic(folder / f"{name}.md", render_markdown(template, context, templates))
    return write_atomic(folder / f"{name}.html", environment.get_template(f"{template}.html").render(context))


def render_markdown(template: str, content: Mapping[str, Any], templates: Path | None = None) -> str:
    """The text of the Markdown page."""
    return str(_environment(templates).get_template(f"{template}.md").render(content)).strip() + "\n"


@cache
def _environment(more: Path | None) -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([*([more] if more else []), Path(__file__).parent / "templates"]),
        autoescape=lambda name: bool(name and name.endswith(".html")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = _cell
    environment.filters["prose"] = _prose
    environment.filters["fence"] = _fence
    return environment


def _prose(text: str) -> Markup:
    """Escaped text in which `` `code` `` is marked up and units stay with their numbers."""
    from markupsafe import Markup, escape

    kept = escape(_STICKY.sub("\N{NO-BREAK SPACE}", text))
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(kept)))


def _cell(text: Any) -> str:
    """Text that cannot break out of a Markdown table cell."""
    return str(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _fence(text: Any, language: str = "") -> str:
    """A fenced code block whose fence is longer than any inside it."""
    ticks = "```"
    while ticks in str(text):
        ticks += "`"
    return f"{ticks}{language}\n{str(text).strip()}\n{ticks}"
