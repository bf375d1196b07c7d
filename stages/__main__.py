"""`python -m stages` is the same as `eigenseg`."""

from stages import main

main(prog_name="eigenseg")
