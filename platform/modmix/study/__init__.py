"""The study file: read, checked against the tables, and turned into a plan. No torch.

In: a YAML file. Out: a `plan.Plan`: configurations of grids, search spaces, seeds, replicates.

    spec      the file's structure, with line numbers for messages
    domains   what a file says about one hyperparameter
    validate  every problem of a file at once
    plan      a valid file with its data
"""
