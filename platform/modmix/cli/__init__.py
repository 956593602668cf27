"""The command line: parses arguments, calls one function, prints.

In: arguments. Out: results on stdout, progress on stderr, exit codes 0 to 3.

    options   arguments and options that several commands have
    opening   the ledger and the study that a command is about
    output    standard output and error that never stop a study
    printing  JSON, and text through rich
    display   progress of a running study or of data preparation
    run       ``modmix run`` and ``final``
    studies   ``modmix status`` and ``list``
    results   ``modmix table``, ``compare``, ``figure``, ``report`` and ``best``
    tracking  ``modmix sync`` and ``ui``
    catalogue ``modmix tasks`` and ``methods``
    data      the ``modmix data`` commands
    export    the ``modmix export`` commands
    main      the entry point
"""
