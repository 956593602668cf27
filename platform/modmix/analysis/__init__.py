"""The analysis shelf: from the ledger to numbers, tables, figures and a report.

In reading order:

    words       how metrics, hyperparameters and values are called where people read them
    statistics  intervals, paired tests, corrections and ranks on plain numbers
    conditions  on which data a configuration was, where a study varies its task
    frames      what the ledger knows, read once, as pandas frames
    best        the best configuration of each method, chosen on validation
    formats     a table as Markdown, LaTeX, CSV, JSON and text
    comparisons    who met on the same data, and ranks over several such comparisons
    tables      the table of results and the table of configurations
    compare     several studies in one table
    curves      the numbers behind curves over a hyperparameter
    outcomes    the numbers behind results, conditions and learning curves
    searches    the numbers behind searches: progress, importance, trade-offs
    style       how figures look
    drawing     those numbers drawn on an axis
    figures     whole figures of a study, by name
    sentences   who wins and by how much, in words
    page        pieces of an HTML page
    report      everything written at once, and one page that holds it

Nothing here trains, samples or tracks: the ledger is the only source.
"""
