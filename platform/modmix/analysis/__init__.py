"""Analysis: statistics, tables, figures and the report of a study.

In: the ledger, nothing else. Out: pandas frames, tables in five formats, figures, an HTML page.

    labels       display names of metrics, hyperparameters and values
    render       a table as Markdown, LaTeX, CSV, JSON or text
    statistics   intervals, paired tests, corrections, ranks; plain numbers in and out
    backend      imports matplotlib, whatever the environment asks for
    style        how figures look
    html         building blocks of the report
    conditions   the data of a configuration, where a study varies its task
    frames       the ledger as pandas frames
    best         the best configuration of each method, chosen on validation
    searches     data of search figures: progress, importance, trade-offs
    comparisons  methods compared on the same data, and ranks over several such comparisons
    curves       data of curves over a hyperparameter
    compare      several studies in one table
    tables       results and configurations
    figure_data  data of figures of best configurations
    drawing      draws that data on an axis
    critical_difference  mean ranks over tasks with the critical difference of the Nemenyi test
    figures      all figures of a study, by name
    predictions  stored test predictions as a Parquet or CSV file
    overlearning  errors where a single modality is right
    summary      the sentences of the report
    over_tasks   methods by tasks, where a study has several, with mean ranks
    report       writes everything
"""
