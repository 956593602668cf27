"""Execution: trains what a study needs, in this process or on a Ray cluster.

In: a plan and the ledger. Out: results in the ledger.

    local          the runner interface, and the runner in this process
    packing        divides replicates into packs (pure)
    costs          estimated cost of a pack
    queue          packs that wait for a worker
    failures       how often machines failed a pack, and when it is abandoned (pure)
    running        a pack in training
    reconciling    compares the study file with the ledger, at the start
    keeping        which test predictions are kept
    run            `StudyRun`: propose, pack, train, record, tell
    stopping       Ctrl-C and SIGTERM
    description    a pack as people read it in Ray Tune's tables
    trials         the driver's record of packs in flight
    nodes          which nodes fail, and which ones a pack avoids
    sharing        a study's fair share of a cluster
    tune_cluster   the Ray cluster: started here or joined
    tune_store     packs and replies, held for trials by a small actor
    tune_trial     one trial: the training of one pack
    tune_search    packs as Ray Tune's trials
    tune_scheduler halving across packs
    tune_callback  what the study is told of its trials
    tune_table     Ray Tune's own table of trials
    tune_runner    the runner on a Ray cluster

Only the files ``tune_*`` import ray.
"""
