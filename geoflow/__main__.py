"""``python -m geoflow``: the command line."""

import sys

from geoflow.cli import main

sys.exit(main())
