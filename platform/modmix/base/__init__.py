"""Shared foundations that every other package may import. No heavy imports.

Pure Python (`metrics` imports torch inside its functions); nothing here depends on a study.

    errors     the exceptions modmix raises on purpose, as a tree, with their exit codes
    home       paths of one user's results: ledger, checkpoints, weights, studies, MLflow
    owner      who a study belongs to
    space      hyperparameters and domains: constants, grids, ranges, choices, conditions
    settings   training settings of a study file, with defaults
    messages   messages between driver and workers: packs, progress, results
    metrics    error, AUC, NLL, ECE, macro-F1, for one model or many at once
    predictions  a replicate's test predictions as compressed bytes
    ties       comparison of values up to rounding error
    sources    users' own Python files: content-addressed, shipped to workers, executed
    code       digests of the code of methods and encoders
    wording    numbers with their nouns
    signature  hyperparameters and options declared by keyword-only constructor arguments
"""
