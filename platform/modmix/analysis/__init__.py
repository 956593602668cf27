"""The analysis shelf: from the ledger to numbers, tables, figures and a report.

In reading order:

    words       how metrics, hyperparameters and values are called where people read them
    statistics  intervals, paired tests, corrections and ranks on plain numbers
    frames      what the ledger knows, as pandas frames
    best        the best point of each method, chosen on validation
    tables      results and points as Markdown, LaTeX, CSV, JSON and text
    curves      the numbers behind every figure
    figures     drawing them on an axis
    report      everything written at once, and one HTML page

Nothing here trains, samples or tracks: the ledger is the only source.
"""
