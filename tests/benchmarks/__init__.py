"""Benchmarks: real commands against real peers, medians of repeated runs, ratios of one run.

    __main__     `make bench`: which ones run, in which order, and what happens to their numbers
    harness      commands that are timed, competitors that take turns, medians and spreads
    report       numbers in modmix_runs/bench.json, and BENCHMARKS.md made of them
    machine      what the numbers were measured on
    server       an MLflow server for all competitors
    workload     studies, the same models for the peers, and whether both learned the same
    competitors  the peers as commands, and their ranking
    peers/       how the same is done with a loop, with Ray Tune and with Optuna alone
    instant      results made at once, in the place of training
    simulated/   a Ray cluster of invented nodes, and studies on it
    curve, curve1100, search, higgs, startup, tune_overhead, driver, cluster, halving, prepare, gpu,
    profiling
                 one benchmark each; for what runs in processes of its own `driver` has
                 driver_child, `higgs` has step, `tune_overhead` has instant_workers/ and
                 `profiling` has sampler/

README.md says how each is measured. None of this is collected by pytest.
"""
