"""Train what a spec describes: `ray job submit … -- python jobs/train.py SPEC`."""

import sys

from eagleray.workflows.train import main

sys.exit(main(sys.argv[1:]))
