"""One HTML file with everything inside: tiles, tables and figures, for light and dark screens."""

import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qvla_ros.atomic_file import atomic_file
from qvla_ros.evaluate.figure_style import styled
from qvla_ros.evaluate.report_style import STYLE_SHEET

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PIXELS_AN_INCH = 100


class Report:
    """Grows from top to bottom by the ``add_`` methods; ``write`` makes the file.

    Args:
        title: Heading and title of the page.
        subtitle: One line below it; what was measured, where and when.
    """

    def __init__(self, title: str, subtitle: str = "") -> None:
        self._title = title
        self._subtitle = subtitle
        self._body: list[str] = []

    def add_heading(self, text: str) -> None:
        """Begins a section."""
        self._body.append(f"<h2>{html.escape(text)}</h2>")

    def add_text(self, text: str) -> None:
        """A paragraph of plain text."""
        self._body.append(f"<p>{html.escape(text)}</p>")

    def add_tiles(self, tiles: Mapping[str, str]) -> None:
        """The few figures that matter: what it is to its value as text, with its unit."""
        cells = "".join(
            f"<div class=tile><div class=value>{html.escape(str(value))}</div>"
            f"<div class=label>{html.escape(label)}</div></div>"
            for label, value in tiles.items()
        )
        self._body.append(f"<div class=tiles>{cells}</div>")

    def add_table(
        self, header: Sequence[str], rows: Sequence[Sequence[object]], caption: str = ""
    ) -> None:
        """A table; columns of numbers are set to the right.

        Args:
            header: One text a column.
            rows: As long as the header each; text, or numbers that are shown as ``str`` gives them.
            caption: What the table shows.
        """
        for row in rows:
            if len(row) != len(header):
                raise ValueError(f"the table has {len(header)} columns, a row has {len(row)}")
        numeric = [all(map(_is_number, column)) for column in zip(*rows, strict=True)]
        numeric = numeric or [False] * len(header)
        head = "".join(
            f"<th{' class=number' if right else ''}>{html.escape(name)}</th>"
            for name, right in zip(header, numeric, strict=True)
        )
        body = "".join(_row(row, numeric) for row in rows)
        self._body.append(
            f"<figure><div class=scroll><table><thead><tr>{head}</tr></thead>"
            f"<tbody>{body}</tbody></table></div>{_caption(caption)}</figure>"
        )

    def add_figure(self, figure: "Figure", caption: str = "") -> None:
        """A Matplotlib figure, drawn into the page as SVG.

        Raises:
            ConfigurationError: Matplotlib is not installed.
        """
        self._body.append(f"<figure>{_svg(figure)}{_caption(caption)}</figure>")

    def to_html(self) -> str:
        """The whole page."""
        subtitle = f"<p class=subtitle>{html.escape(self._subtitle)}</p>" if self._subtitle else ""
        return (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{html.escape(self._title)}</title><style>{STYLE_SHEET}</style></head><body>"
            f"<main><header><h1>{html.escape(self._title)}</h1>{subtitle}</header>"
            f"{''.join(self._body)}</main></body></html>\n"
        )

    def write(self, path: Path) -> None:
        """Writes the page; a reader of ``path`` sees the old file or the whole new one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            file.write(self.to_html().encode())


def _row(values: Sequence[object], numeric: Sequence[bool]) -> str:
    cells = "".join(
        f"<td{' class=number' if right else ''}>{html.escape(str(value))}</td>"
        for value, right in zip(values, numeric, strict=True)
    )
    return f"<tr>{cells}</tr>"


def _is_number(value: object) -> bool:
    text = str(value).lstrip("+-−")
    return text[:1].isdigit() or text in ("", "nan", "–")


def _caption(text: str) -> str:
    return f"<figcaption>{html.escape(text)}</figcaption>" if text else ""


def _svg(figure: "Figure") -> str:
    buffer = io.StringIO()
    with styled():
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    width = round(figure.get_figwidth() * _PIXELS_AN_INCH)
    return f'<div style="max-width:{width}px">{text[text.index("<svg") :]}</div>'
