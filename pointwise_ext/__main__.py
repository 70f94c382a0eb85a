"""python -m pointwise_ext: what is installed here and what can run."""

from .info import info

print(info())
