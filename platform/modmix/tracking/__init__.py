"""The mirror in MLflow: what the ledger holds, shown in an experiment per study.

    store     MLflow's calls in our words; the only file with mlflow (beside
    `modmix.registry.pyfunc`) database  the same and more for a local SQLite file, written directly
    content   what the runs of a study are to hold, computed from the ledger's records reader
    what the ledger says of a study by now finder    what MLflow holds of a study writer    brings
    the runs of one study up to the ledger, whatever happened before follow    the process that does
    so while a study runs mirror    `Mirror`, the driver's side of it; `sync`, all of it at once
    models    versions and aliases in the model registry serve     MLflow's own pages, on the
    loopback address

Importing this does not import mlflow, which takes a second.
"""

from modmix.tracking.mirror import Mirror, Synced, sync
from modmix.tracking.serve import serve
from modmix.tracking.store import check, shown

__all__ = ["Mirror", "Synced", "check", "serve", "shown", "sync"]
