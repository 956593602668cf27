"""The ledger: a SQLite or PostgreSQL database that is the source of truth for every study.

In: studies, proposed configurations, results. Out: the same as records. MLflow only mirrors it.

    records    what is stored, as frozen dataclasses (light to import)
    database   tables, transactions, schema version
    studies    studies and their leases
    proposals  configurations, and the entries of grids and searches
    results    replicates, histories, packs
    predictions  stored test predictions, and their test splits
    ledger     `Ledger`: all of the above on one database
    heartbeat  the thread that renews a lease

Only this package imports sqlalchemy. Each study has one writer, the driver that holds its lease.
Every method is one transaction, so a killed process leaves the state before it or after it. SQLite
runs in WAL mode with full synchronisation: a recorded result survives a power failure.
"""
