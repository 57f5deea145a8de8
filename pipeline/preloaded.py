"""What is imported by the process that workers are forked from; by no other, as it sets what they shall have."""

import importlib
import os

from pipeline.cluster import ENVIRONMENT, limit_arenas

os.environ.update(ENVIRONMENT)  # before libraries that read it when they are imported
limit_arenas()
for module in ("distributed.nanny", "pipeline.compress"):
    importlib.import_module(module)
