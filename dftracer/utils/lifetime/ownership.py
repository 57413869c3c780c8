"""Whether this package is alone in its folder.

``dftracer-utils`` installs a ``dftracer/utils`` of its own. In one environment the two overwrite
each other's files, and which of them wins depends on which was installed last.
"""

from __future__ import annotations

import warnings
from pathlib import Path

_MARK_OF_THE_OTHER = "dftracer_utils_ext*"
"""Its native module, which this distribution does not have."""


def warn_of_another_owner() -> None:
    """Warn if ``dftracer-utils`` is installed over this package, or under it."""
    here = Path(__file__).parents[1]
    if any(here.glob(_MARK_OF_THE_OTHER)):
        warnings.warn(
            "dftracer-utils is installed in the same environment as dftracer-asyncflow: both own "
            f"the package 'dftracer.utils' ({here}), and files of the one have replaced files of "
            "the other. Uninstall both and install only one of them, or use two environments.",
            RuntimeWarning,
            stacklevel=3,
        )
