"""``python -m geoflow``: the command line."""

import sys

from geoflow.cli.parser import main

sys.exit(main())
