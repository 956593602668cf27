"""Methods for combining modalities.

A method maps features (B, D_m), keyed by modality, to class scores and per-example losses.

    entry               `MethodEntry`, the declaration of a method in the table (no torch)
    entries_combine     entries of the methods of "Learn to Combine Modalities"
    entries_joint       entries of jointly trained fusion architectures
    entries_balanced    entries of methods that balance how fast modalities learn
    entries_confidence  entries of methods that weight modalities by confidence
    entries_staged      entries of methods that train in stages or in turns
    table               names, hyperparameters and requirements of all methods (no torch)
    base                the `Method` contract: one model, one batch
    patient             a stage in which early stopping begins later
    draws               counter-based random numbers and dropout
    unimodal            single-modality baseline
    early               early fusion of raw inputs, eq. 1
    late                late fusion of independently trained classifiers, eq. 2
    add                 additive combination, eqs. 3-5
    attend              additive combination with attention over modalities
    mul                 multiplicative combination, eqs. 8-10
    mulmix              multiplicative combination of modality mixtures, eqs. 11-13
    cldl                collaborative layer-wise discriminative learning
    dimml_parts         DUC, dimension selection, logit weighting and heads of dimml
    dimml               detached and interactive multimodal learning, in two stages
    joint               base class of methods with one classifier for all modalities
    concat              linear classifier on the concatenation
    sum                 linear classifier per modality, logits summed
    film                one modality scales and shifts the others
    gated               one modality gates the others
    mmcosine            summed cosines of features and class weights
    gmu                 gated multimodal unit
    moddrop             whole modalities dropped at random in training
    tfn                 tensor fusion: outer product of all modalities
    lmf                 tensor fusion with weights of low rank
    late_transformer    Transformer encoder over one token per modality
    centralnet          a central network merges the modalities' hidden layers
    balanced            shared by the balanced methods: fusion, unimodal logits
    ogm_ge              on-the-fly gradient modulation with noise
    agm                 adaptive gradient modulation
    mmpareto            Pareto integration of multimodal and unimodal gradients
    pmr                 prototypical modal rebalance
    gblending           gradient blending: losses weighted by generalisation and overfitting
    dgl                 disentangled gradient learning
    tmc                 evidence of each modality, combined by Dempster's rule
    qmf                 logits weighted by confidence, with a rank loss
    mla                 modalities take turns training a shared head
    reconboost          each modality in turn corrects the ensemble of the others
    umt                 joint training with distillation from unimodal teachers
    model               encoders plus a method: build, save and load a model
"""
