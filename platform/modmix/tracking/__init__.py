"""The mirror in MLflow: what the ledger holds, shown in an experiment per study.

    store    MLflow's calls in our words; the only file with mlflow (beside `modmix.pyfunc`)
    content  what the runs of a study are to hold, computed from the ledger's records
    writer   brings the runs of one study up to the ledger, whatever happened before
    mirror   `Mirror` does that in the background while a study runs, `sync` at once
    models   versions and aliases in the model registry
    serve    MLflow's own pages, on the loopback address

Importing this does not import mlflow, which takes a second.
"""

from modmix.tracking.mirror import Mirror, Synced, sync
from modmix.tracking.serve import serve
from modmix.tracking.store import check, shown

__all__ = ["Mirror", "Synced", "check", "serve", "shown", "sync"]
