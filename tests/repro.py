"""python -m tests.repro '<json>': runs one problem, as a failing random test prints it."""

import sys

from tests.problem import Problem

problem = Problem.from_json(sys.argv[1])
problem.check()
print("right:", problem)
