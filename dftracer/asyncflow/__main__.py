"""``python -m dftracer.asyncflow``: the command line."""

import sys

from dftracer.asyncflow.cli.main import main

sys.exit(main())
