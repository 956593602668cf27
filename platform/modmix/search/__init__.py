"""Search: which configurations are trained, and for how long.

In: search spaces of the plan, results. Out: configurations to train; verdicts at rungs. Decisions
are pure; whatever must survive a restart is rebuilt from the ledger.

    proposer   ask and tell with Optuna's samplers; the only file that imports optuna
    run_state  configurations and replicates of a running study, in memory
    confirmation    best configurations of a part, trained again with other seeds
    limits     how many configurations are in flight
    warm_start  first proposals from another study
    rungs      successive halving across packs
    searches   all searches of a study: budgets, batches, staged seeds
"""
