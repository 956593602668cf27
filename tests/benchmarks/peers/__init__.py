"""How others would do it; each is a script of its own.

plain      one model trained by ordinary PyTorch, as fast as that goes; all of them use it
loop       one model after another, one process per core, nothing logged
ray_class  a Ray Tune experiment as fast as it goes: class trainable, reused workers, no MLflow
ray_tune   a Ray Tune experiment with MLflow: Tune's own callback, or logged in the trial
optuna_two Optuna in two processes on one storage, MLflow logged once an epoch
"""
