"""Make a model version of a finished run: `ray job submit … -- python jobs/publish.py RUN --name digits`."""

import sys

from eagleray.workflows.publish import main

sys.exit(main(sys.argv[1:]))
