"""Benchmarks: real commands against real peers, medians of repeated runs, ratios of one run.

    __main__   `make bench`: which ones run, in which order, and what happens to their numbers
    harness    commands that are timed, contestants that take turns, medians and spreads
    report     numbers in modmix_runs/bench.json, and BENCHMARKS.md made of them
    machine    what the numbers were measured on
    server     an MLflow server for all contestants
    workload   studies, the same models for the peers, and whether both learned the same
    peers/     how the same is done with a loop, with Ray Tune and with Optuna alone
    curve, search, higgs, driver, halving, prepare, startup, gpu, profiling
               one benchmark each

None of this is collected by pytest.
"""
