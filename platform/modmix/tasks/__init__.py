"""Tasks: data sets with their inputs, splits and default recipes.

In: options of the study file and a user's files. Out: `data.Data`, memory-mapped and fingerprinted.

    data             what a task hands over: inputs, splits, labels
    options          options a task declares, and their checks
    table            all tasks: options, default encoders and recipe, cost, source
    files            cache folders, checksums, disk errors
    rows             rows between two passes over a file: in memory, then on disk
    splits           seeded splits and standardisation
    writer           writes a prepared folder
    download         resumable download with checksum
    base             the `Task` contract: prepare once, load, check
    digits           8x8 scans from scikit-learn
    weak             synthetic data with inputs that are uninformative for some examples
    higgs_csv        parallel reader of HIGGS's file
    higgs_synthetic  a synthetic file of HIGGS's layout and size
    higgs            HIGGS: signal or background
    arrays_read      a user's file after reading
    arrays_labels    labels and splits of a user's file
    arrays_csv       reads CSV
    arrays_npz       reads npz
    arrays           a user's own data
"""
