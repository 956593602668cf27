"""How others would do it; each is a script of its own.

plain      one model trained by ordinary PyTorch, as fast as that goes; all of them use it
loop       one model after another, one process per core, nothing logged
ray_tune   a Ray Tune experiment with Tune's own MLflow callback
optuna_two Optuna in two processes on one storage, MLflow logged once an epoch
"""
