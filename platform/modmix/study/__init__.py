"""The study file: parsed, validated against the tables, and turned into a plan. No torch.

Input: a YAML file. Output: a `plan.Plan` with grids, search spaces, seeds and replicates.

    scalars         scalar values of YAML 1.2
    files           parsing, with line numbers for messages
    spec            the file's schema
    variables       environment variables in task options
    domains         the domain of one hyperparameter
    checks          what the checks against the tables share
    parts           parts checked against the tables, and their domains
    validate        the whole file checked against the tables, collecting every problem
    compatibility   incompatible settings, and settings without effect
    dry_run         a small batch through a model of each kind before training
    configurations  resolved configurations and the keys of their replicates
    provenance      versions of code and libraries
    plan            a valid study file with its data
    data_checks     checks that need the data, and a dry run of every kind of model
    make_plan       the plan of a study of one task
    tasks_plan      the plan of a study of several tasks
    outline         what a plan would train, in a few lines
"""
