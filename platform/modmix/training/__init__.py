"""Training: one pack of K models of one structure, trained as one stacked model.

In: a `messages.Pack` and its data. Out: a stream of events: started, progress, finished. Needs
torch and numpy only.

    device      which branches a device takes, its memory, its precision
    augment     random crops and mirror images, as functions of seed, epoch and example
    batches     batches for models with different seeds, resident or streamed
    optimizers  SGD, Adam, AdamW with a leading model axis; clipping and schedules
    weights     parameters and buffers of K models
    stack       K models as one, through ``torch.func``
    counting    operations and bytes of a training step, counted without running it
    graphs      training steps as CUDA graphs
    halving     successive halving within a pack (pure)
    timeline    stages, epochs and parts of epochs, and the position in them (pure)
    record      training state and history of one replicate (pure)
    evaluation  predictions and metrics of a whole split
    group       models trained together: stack, optimizer, best weights, running sums
    builder     from replicates to groups
    fitting     work on groups that may be too large for the memory
    probe       measures how many models fit, and whether stacking is faster
    checkpoint  safetensors with a JSON header
    saving      the state of a pack as tensors and JSON, and back
    trainer     epochs, evaluations, halving, checkpoints, events
"""
