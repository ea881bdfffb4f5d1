"""`python -m eagleray.cli`: the same as `eagleray`."""

from eagleray.cli import main

main()
