"""The command line: parses arguments, calls one function, prints.

In: arguments. Out: results on stdout, progress on stderr, exit codes 0 to 3.

    display  progress of a running study or of data preparation
    output   standard output and error that never stop a study
    opening  the ledger and the study that a command is about
    data     the ``modmix data`` commands
    export   the ``modmix export`` commands
    main     all other commands, and the entry point
"""
