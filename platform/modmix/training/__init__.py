"""Training: a pack of K models with the same structure, trained as one stacked model.

Input: a `messages.Pack` and its data. Output: a stream of events (started, progress, finished).
Needs only torch and numpy, plus safetensors for checkpoints.

    device      CPU or GPU code paths, free memory, float32 precision
    augment     random crops, flips and noise as functions of seed, epoch and example
    batches     batches for models with different seeds, from the device or streamed from the host
    optimizers  SGD, Adam, AdamW with a leading model axis; clipping and schedules
    weights     parameters and buffers of K models
    turns       what each turn of a stage trains
    stack       K models run as one with ``torch.func``
    counting    FLOPs and bytes of a training step, counted
    graphs      training steps as CUDA graphs
    halving     successive halving and promotion rules (pure)
    pbt         population-based training: who copies whom, perturbed values (pure)
    timeline    stages, epochs and parts of epochs, and the position in them (pure)
    record      training state and history of one replicate (pure)
    evaluation  predictions and metrics on a whole split
    group       models trained together: stack, optimizers, best weights, running sums
    builder     builds groups from replicates
    fitting     runs an action on groups and splits those that run out of memory
    probe       measures how many models fit, and whether stacking is faster
    population  models that continue as copies of better ones
    outcomes    tests of models that are done, and what is kept of them
    checkpoint  safetensors with a JSON header
    saving      converts the state of a pack to tensors and JSON, and back
    trainer     epochs, evaluations, halving, checkpoints, events
"""
