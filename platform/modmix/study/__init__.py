"""The study file: read, checked against the tables, and turned into a plan. No torch.

In: a YAML file. Out: a `plan.Plan`: configurations of grids, search spaces, seeds, replicates.

    scalars         numbers and words of YAML 1.2
    spec            the file's structure, with line numbers for messages
    domains         what a file says about one hyperparameter
    validate        every problem of a file at once
    compatibility   settings that cannot work together, and settings without effect
    dry_run         one model of every kind built, and a small batch sent through it
    configurations  what a configuration resolves to, and its replicates' keys
    provenance      versions of code and libraries
    plan            a valid file with its data
"""
