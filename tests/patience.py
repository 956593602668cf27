"""How long Ray may take to start, in the environment of processes that tests start."""

RAY_PATIENCE = {"RAY_raylet_start_wait_time_s": "200"}  # instead of 30
