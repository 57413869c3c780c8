"""How the pages become a site: ``nox -s docs``.

The source is the top folder of the checkout, so that a link leads to the same file on the site as
on a code host.
"""

import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

project = "dftracer-asyncflow"
copyright = "the authors of dftracer-asyncflow"

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_nb", "sphinx_copybutton"]
extensions += ["site_pages", "site_reference"]

root_doc = "docs/index"
# And those pages elsewhere that the first page names.
others = re.findall(r"\]\(\.\./([^)]+\.md)\)", (HERE / "index.md").read_text(encoding="utf-8"))
include_patterns = ["docs/**", *others]
exclude_patterns = [".*", "**/.*", "target", "dftracer", "tests", "rust/*/src", "_build"]

nb_execution_mode = "off"  # the tests run the notebook
myst_heading_anchors = 4
highlight_language = "none"

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
maximum_signature_line_length = 88
napoleon_google_docstring = False
napoleon_use_rtype = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "dftracer-asyncflow"
html_extra_path = ["site"]
html_copy_source = False
html_show_sphinx = False
copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = False
