"""The shelf of data: ``table`` lists the tasks, ``data`` says what a task hands over.

``base`` prepares, loads, describes and checks; ``digits``, ``weak``, ``higgs`` and ``arrays`` are
the tasks. Importing this package loads nothing.
"""
