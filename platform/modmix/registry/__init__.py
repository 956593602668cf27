"""Registry: from a finished study to a registered model.

In: the best configurations of a study. Out: study files for final runs; after those, a model
version in MLflow.

    best    writes the study files of best configurations
    pyfunc  what a registered model runs (copied beside its weights)
    models  versions and aliases in MLflow's model registry
    final   registers final runs as models
"""
