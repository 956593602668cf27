"""Data sets, in reading order; importing this package loads nothing.

data            what a task gives: inputs, splits, labels, augmentation
table, options  which tasks there are, and their options
base            prepares a task's arrays once, and maps, describes and checks them
writer, files   the prepared folder; locks, checksums and errors of the disk
splits          seeded splits, means and deviations
digits, weak    tasks of data that need no file
higgs           UCI HIGGS; ``download`` fetches it
arrays          a user's .npz or CSV: ``arrays_npz`` and ``arrays_csv`` read it, ``arrays_labels``
                numbers the classes, ``arrays_inputs`` writes the inputs, ``arrays_tokens`` and
                ``signals`` turn text and sound into them
csv_file        streams CSV files
"""
