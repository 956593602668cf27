"""A large Ray cluster on this machine: nodes with invented processors and GPUs, invented training.

invented   a study's text, a function to minimise, and training that only sleeps
workers/   on PYTHONPATH of the nodes: their workers train so
trace      what workers note: which pack was where and when
nodes      clusters: nodes that join, leave or are bad, and one that scales by itself
driver     one study on a cluster, a process of its own
scenarios  what happens to cluster and studies, a process per scenario
"""
