"""Tasks: data sets with their inputs, splits, default encoders and training recipes.

A task turns the options of a study file, and data files, into memory-mapped, fingerprinted
`data.Data`.

    data             `Data`: the inputs, splits and labels of a task
    options          declaration and validation of task options
    entry            `TaskEntry`, the declaration of a task in the table (no torch)
    entries_bundled  entries of tasks without files
    entries_papers   entries of the paper's data sets
    entries_arrays   entry of the task for a user's own data
    entries_video    entries of tasks with audio, images and video
    entries_text     entries of tasks with text
    table            all tasks: options, default encoders and recipe, cost, source (no torch)
    files            cache folders, locks, checksums, disk errors
    file_states      names, sizes and times of files, to detect changes
    splits           seeded splits and standardisation
    writer           writes a folder of prepared arrays
    csv_file         streams CSV files with pyarrow
    signals          mu-law decoding and spectrograms of audio
    download         downloads with pooch, verified by checksum
    base             the `Task` contract; preparing, loading and verifying data
    digits           8x8 digit images from scikit-learn
    weak             synthetic data with inputs that are uninformative for some examples
    higgs            UCI HIGGS: signal or background
    media_read       frames, audio and images from media files
    media_checks     which items a preparation may leave out, and files in several splits
    media_decode     decodes items in several processes, in shards, so that it can be resumed
    media            tasks whose sources are thousands of media files
    media_lists      split files, and a validation split drawn from the training items
    media_worker     the decoding process
    clips            tasks of audio-visual clips
    cremad           CREMA-D: acted emotions
    ave              AVE: audio-visual events
    kinetics_sounds  Kinetics-Sounds: audio-visual actions
    ucf101_lists     the official lists of UCF101, and a validation split by group
    ucf101           UCF101: a frame of a video and its optical flow
    modelnet40       ModelNet40: objects from several views
    cifar100         CIFAR-100: small photographs, read by torchvision
    characters       texts as token ids
    gender_names     first names and the shares of their bearers' genders
    gender_generator synthetic users
    gender_csv       users from a CSV
    gender           gender from name, user ID and activity
    words            words of texts as token ids
    text_images      tasks of images with text
    food101          UPMC Food-101: dishes and titles
    mvsa             MVSA: sentiment of tweets with images
    hateful_memes    Hateful Memes: images with the text on them
    restricted_pickle reads pickles of arrays without running code
    mosi             CMU-MOSI and CMU-MOSEI: sentiment from text, audio and vision
    arrays_read      contents of a user's file, and the lookup of names in it
    arrays_labels    labels and splits of a user's file
    arrays_tokens    text and token ids of a user's file
    arrays_inputs    writes the inputs of a user's file
    arrays_csv       reads CSV
    arrays_npz       reads npz
    arrays           the task for a user's own data
"""
