"""``python -m lidarssl.cli``: the command where scripts are not on the path."""

import sys

from lidarssl.cli import main

sys.exit(main())
