"""Tasks: data sets with their inputs, splits and default recipes.

In: options of the study file and a user's files. Out: `data.Data`, memory-mapped and fingerprinted.

    data             what a task hands over: inputs, splits, labels
    options          options a task declares, and their checks
    table            all tasks: options, default encoders and recipe, cost, source
    files            cache folders, checksums, disk errors
    splits           seeded splits and standardisation
    writer           writes a prepared folder
    csv_file         streams CSV files by pyarrow
    signals          sound to spectrograms
    download         downloads by pooch, with checksum
    base             the `Task` contract: prepare once, load, check
    digits           8x8 scans from scikit-learn
    weak             synthetic data with inputs that are uninformative for some examples
    higgs            HIGGS: signal or background
    characters       texts as token ids
    gender_names     first names and who bears them
    gender_generator made-up users
    gender_csv       users of a CSV
    gender           gender from name, user ID and activity
    arrays_read      a user's file after reading
    arrays_labels    labels and splits of a user's file
    arrays_tokens    text and token ids of a user's file
    arrays_inputs    writes the inputs of a user's file
    arrays_csv       reads CSV
    arrays_npz       reads npz
    arrays           a user's own data
"""
