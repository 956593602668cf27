"""The ledger: a SQLite or PostgreSQL database that is the source of truth for every study.

In: studies, proposed configurations, results. Out: the same as records. MLflow only mirrors it.

    records    what is stored, as frozen dataclasses (light to import)
    tables     the tables, and their version
    database   connections, transactions, whose study it is
    retrying   database errors that pass, and how work is repeated
    migration  from the version before
    studies    studies and their leases
    processes  whether a driver's process is still there
    proposals  configurations, and the entries of grids and searches
    recording  how results are written
    results    replicates, histories, packs
    predictions  stored test predictions, and their test splits
    ledger     `Ledger`: all of the above on one database
    heartbeat  the thread that renews a lease

Only this package imports sqlalchemy. Each study has an owner, and one writer: the driver that holds
its lease. Trained results are shared by all studies.
Every method is one transaction, so a killed process leaves the state before it or after it. SQLite
runs in WAL mode with full synchronisation: a recorded result survives a power failure.
"""
