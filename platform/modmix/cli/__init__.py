"""The command line: parses arguments, calls one function, prints.

In: arguments. Out: results on stdout, progress on stderr, exit codes 0 to 3.

    display  progress of a running study or of data preparation
    output   standard output and error that never stop a study
    data     the ``modmix data`` commands
    main     all other commands, and the entry point
"""
