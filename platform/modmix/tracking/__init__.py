"""Tracking: mirrors the ledger to MLflow, one experiment per study.

In: the ledger. Out: runs, metrics and files in MLflow. Training never waits for it.

    store     MLflow's client with translated errors; the only file here that calls mlflow
    content   what runs of configurations hold, computed from the ledger's records (pure)
    overview  what the study's run holds (pure)
    reader    reads the ledger incrementally
    finder    finds a study's existing runs in MLflow
    writer    brings a study's runs up to date
    follow    the background process that does so while a study runs
    mirror    `Mirror`, the driver's handle on that process; `sync` updates once
    optuna_mirror  copies of searches in an Optuna storage, for optuna-dashboard
    serve     MLflow's UI or optuna-dashboard on the loopback address
"""
