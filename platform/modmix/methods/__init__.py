"""Methods: ways to combine modalities.

In: features (B, D_m) by modality. Out: class scores and per-example losses.

    table     names, hyperparameters and requirements of all methods (no torch)
    base      the `Method` contract: one model, one batch
    draws     random numbers as functions of seed and position; dropout
    unimodal  one modality alone
    early     concatenation, eq. 1
    late      independently trained models, eq. 2
    add       additive combination, eqs. 3-5
    attend    attention over modalities
    mul       multiplicative combination, eqs. 8-10
    mulmix    the same over mixtures of modalities, eqs. 11-13
    cldl      collaborative layer-wise discriminative learning
    model     encoders and a method as one model: build, save, load
"""
