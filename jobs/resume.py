"""Go on with a stopped or failed run: `ray job submit … -- python jobs/resume.py RUN`."""

import sys

from eagleray.workflows.resume import main

sys.exit(main(sys.argv[1:]))
