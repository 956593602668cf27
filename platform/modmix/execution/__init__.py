"""Execution: trains what a study needs, in this process or on a Ray cluster.

In: a plan and the ledger. Out: results in the ledger.

    local       the runner interface, and the runner in this process
    packing     divides replicates into packs (pure)
    costs       estimated cost of a pack
    queue       packs that wait for a worker
    keeping     which test predictions are kept
    run         `StudyRun`: propose, pack, train, record, tell
    mailbox     messages between driver and workers
    seat        a worker's loop
    bridge      the driver's side of the mailbox
    ray_seats   workers as Ray Tune trials
    ray_runner  the runner on a Ray cluster
    starting    starts the runner while the study file is still being checked

Only the two ``ray_`` files import ray.
"""
