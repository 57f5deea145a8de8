"""What a person or a clock starts: the command, Prefect flows, presets."""

import os

# Read when Prefect is imported: it tells nobody how it is used.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
