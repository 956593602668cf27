"""Encoders: networks that map one input of a task to the features of one or more modalities.

An encoder maps a batch (B, *shape) to features (B, D), or to several of them by modality.

    table      names, hyperparameters and accepted inputs of all encoders (no torch)
    base       the `Encoder` contract
    identity   flattens the input; no parameters
    mlp        fully connected layers
    resnet     CIFAR ResNet (6n+2 layers) whose unit outputs can be modalities
    resnet18   ResNet-18 for images, video frames, optical flow and spectrograms
    char_lstm  LSTM over token ids
    char_cnn   convolutions over token ids
    transformer self-attention over token ids or the frames of a sequence
"""
