"""Search for the best values of a train spec: `ray job submit … -- python jobs/tune.py SPEC`."""

import sys

from eagleray.workflows.tune import main

sys.exit(main(sys.argv[1:]))
