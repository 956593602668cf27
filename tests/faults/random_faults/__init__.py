"""Random faults in real studies, and what is left of the studies afterwards.

    python -m tests.faults.random_faults --count 100 --seed 0

plan         which faults, drawn from a seed: victim, signal, moment
processes    finds processes, stops them, and sees that none is left
scene        one study with its Ray cluster, MLflow server and database, and its commands
watch        what the ledger says meanwhile: how many results, which phase
victims      how each victim is hit, and how its owner mends it
ordeal       one study with its faults, and the same command until it is finished
checks       what must hold afterwards
table        the faults and the counts as text and JSON
"""
