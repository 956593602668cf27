"""Encoders: networks that turn one input of a task into a feature vector (or several).

In: a batch of one input, (B, *shape). Out: features, (B, D), of one or more modalities.

    table      names, hyperparameters and accepted inputs of all encoders (no torch)
    base       the `Encoder` contract
    identity   flattens, learns nothing
    mlp        fully connected layers
    resnet     the CIFAR ResNet (6n+2 layers) with taps as modalities
    resnet18   ResNet-18 for images, frames, flow, spectrograms
    char_lstm  LSTM over token ids
    char_cnn   convolutions over token ids
"""
