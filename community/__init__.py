"""A community of expert models: they answer, read and judge each other, and teach each other.

Importing this package loads nothing heavy; torch, transformers, ray and matplotlib come
with the modules that use them.
"""

import os
from importlib.metadata import PackageNotFoundError, version

# OpenMP reads these when torch is loaded, hence here, before anything of ours can load it.
# Its idle threads spin by default, so several workers on one machine take the cores from
# each other: under load, generating one answer at a time went from 2.3 to 15.6 tokens a
# second with these two. Values set by the user stay.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
# With more BLAS threads a sum may round otherwise, and a ledger depend on the number of cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

try:
    __version__ = version("modelcommunity")
except PackageNotFoundError:  # read from a source tree that was never installed
    __version__ = "0"
