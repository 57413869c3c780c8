"""The order of the site's pages: as the pages that are lists of links have them.

Such a page is plain Markdown, readable anywhere. Here its links become the site's navigation.
"""

import posixpath
import re
from typing import Any

LISTS = ("docs/index", "docs/adr/README", "docs/reference/README")


def add_contents(app: Any, docname: str, source: list[str]) -> None:
    """Add to a list of pages a hidden table of contents for each of its sections."""
    if docname not in LISTS:
        return
    for title, section in re.findall(r"^#+ (.*)\n((?:(?!#).*\n?)*)", source[0], re.MULTILINE):
        links = re.findall(
            r"^(?:- |\d+\. |\| )\[.*?\]\(([^):]+)\.(?:md|ipynb)\)", section, re.MULTILINE
        )
        folder = posixpath.dirname(docname)
        pages = ["/" + posixpath.normpath(posixpath.join(folder, link)) for link in links]
        if pages:
            caption = f":caption: {title}\n" if docname == app.config.root_doc else ""
            body = "\n".join(pages)
            source[0] += f"\n```{{toctree}}\n:hidden:\n{caption}\n{body}\n```\n"


def setup(app: Any) -> dict[str, Any]:
    """Register this with Sphinx."""
    app.connect("source-read", add_contents)
    return {"parallel_read_safe": True}
