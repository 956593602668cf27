"""Shared foundations that every other package may import. No heavy imports.

Pure Python (`metrics` imports torch when it is called); nothing here depends on a study.

    errors     the exceptions modmix raises on purpose, as a tree, with their exit codes
    home       paths of one user's results: ledger, checkpoints, weights, studies, MLflow
    space      hyperparameters and domains: constants, grids, ranges, choices, conditions
    settings   training settings of a study file, with defaults
    messages   what travels between driver and workers: packs, progress, results
    metrics    error, AUC, NLL, ECE, macro-F1, for one model or many at once
    ties       which values are equal up to rounding
    sources    users' own Python files: named by content, sent along, run
    signature  hyperparameters and options from a class's keyword-only arguments
"""
