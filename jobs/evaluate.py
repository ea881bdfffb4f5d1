"""Judge a model as a spec says: `ray job submit … -- python jobs/evaluate.py SPEC`."""

import sys

from eagleray.workflows.evaluate import main

sys.exit(main(sys.argv[1:]))
