"""``python -m dftracer.asyncflow``: the command line."""

import sys

from dftracer.asyncflow.cli import main

sys.exit(main())
