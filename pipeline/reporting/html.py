"""The report's page as one HTML file with its pictures inside, which MLflow shows among the artifacts and mail carries.

Not here: what the page says (page.py).
"""

from __future__ import annotations

import base64
import html
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

_STYLE = """\
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 65em; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums }
th, td { padding: .25em .7em; border-bottom: 1px solid #ddd; text-align: left }
td:first-child { white-space: nowrap }
thead th { border-bottom: 2px solid #888 }
img { max-width: 100% }
code, pre { background: #f5f5f5; overflow-x: auto }
pre { padding: .7em }"""


def page(markdown: str, *, folder: Path) -> str:
    """The whole HTML document, which needs no other file.

    Args:
        markdown: the page; its first line is its title.
        folder: where the PNG pictures lie that it names by relative paths. What is not there, such as what a run's name looks
            like, stays a link.
    """
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = reader.parse(markdown)
    for token in tokens:
        for inner in token.children or ():
            if inner.type == "image":
                _put_inside(inner, folder)
    title = html.escape(markdown.partition("\n")[0].lstrip("# ").replace("`", ""))
    head = f'<meta charset="utf-8">\n<title>{title}</title>\n<style>\n{_STYLE}\n</style>'
    body = reader.renderer.render(tokens, reader.options, {})
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}</body>\n</html>\n'


def _put_inside(image: Token, folder: Path) -> None:
    path = folder / str(image.attrs["src"])
    if path.is_file():
        image.attrs["src"] = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
