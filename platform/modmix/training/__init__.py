"""Training: one pack of K models of one structure, trained as one stacked model.

In: a `messages.Pack` and its data. Out: a stream of events: started, progress, finished. Needs
torch and numpy only.

    precision   matrix precision of the device
    memory      how much memory there is
    batches     batches for models with different seeds
    optimizers  SGD, Adam, AdamW with a leading model axis; clipping and schedules
    products    matrix products of K models on a CPU
    linear      fully connected layers of K models on a CPU
    stack       K models as one, through ``torch.func``
    graphs      training steps as CUDA graphs
    halving     successive halving within a pack (pure)
    record      what the trainer knows of one replicate (pure)
    checkpoint  safetensors with a JSON header
    group       models trained together: stack, optimizer, best weights, running sums
    builder     from replicates to groups
    probe       measures how many models, threads and which compilation pay
    trainer     epochs, evaluations, halving, checkpoints, events
"""
