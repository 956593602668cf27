"""Tracking: mirrors the ledger to MLflow, one experiment per study.

In: the ledger. Out: runs, metrics, files and model versions in MLflow. Training never waits for it.

    store     MLflow's client behind a small interface; the only file here that imports mlflow
    database  faster writes to a local SQLite file of MLflow's
    content   what each run should hold, computed from the ledger's records (pure)
    reader    reads the ledger incrementally
    place     whether files that MLflow knows are where they were
    finder    finds a study's existing runs in MLflow
    writer    brings a study's runs up to date
    follow    the background process that does so while a study runs
    mirror    `Mirror`, the driver's handle on that process; `sync` updates once
    models    versions and aliases in the model registry
    serve     MLflow's UI on the loopback address
    optuna_mirror  copies of searches in an Optuna storage, for optuna-dashboard
    optuna_ui      optuna-dashboard on the loopback address
"""
