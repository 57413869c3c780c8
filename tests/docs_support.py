"""The examples in the pages of ``docs/``, to be run as they stand there."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def examples(page: str, language: str = "python") -> list[str]:
    """Return the fenced blocks of one language in a page."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
