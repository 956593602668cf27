"""How a victim is hit, and how its owner mends what the fault has broken."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections.abc import Collection
from contextlib import suppress

import psutil

from tests.faults.random_faults.plan import Fault
from tests.faults.random_faults.processes import (
    Patience,
    below,
    command_line,
    kill,
    lives,
    mirrors,
    send,
    trainers,
)
from tests.faults.random_faults.scene import Command, Scene

LOST = 14.0  # seconds after which Ray takes a silent node for lost, see `scene.HEALTH`


def find(fault: Fault, scene: Scene, command: Command) -> list[psutil.Process]:
    """The processes that the fault hits; [] while there are none."""
    match fault.victim:
        case "driver":
            return [psutil.Process(command.pid)]
        case "worker":
            nodes = [node.pid for node in scene.cluster.nodes] if scene.cluster else []
            return _one_of(trainers([command.pid, *nodes]), fault)
        case "mirror":
            return mirrors(command.pid)[:1]
        case "mlflow":
            assert scene.server is not None
            assert scene.server.process is not None
            return _whole(scene.server.process.pid)
        case "database":
            assert scene.database is not None
            whole = _whole(scene.database.pid)
            if fault.signal != "SIGTERM":
                return whole
            connections = [p for p in whole if "postgres: modmix " in command_line(p)]
            return _one_of(connections, fault)
        case "node":
            assert scene.cluster is not None
            whole = _whole(scene.cluster.nodes[-1].pid)
            rays = [p for p in whole if "raylet/raylet" in command_line(p)]
            return rays[:1] if fault.signal == "SIGTERM" else whole
    raise AssertionError(fault.victim)


def _whole(pid: int) -> list[psutil.Process]:
    return [psutil.Process(pid), *below(pid)]


def _one_of(found: list[psutil.Process], fault: Fault) -> list[psutil.Process]:
    return random.Random(fault.seed).sample(found, min(1, len(found)))


def hit(fault: Fault, scene: Scene, found: list[psutil.Process], patience: Patience) -> None:
    """Send the signal, and mend: continue what was stopped, start what has ended.

    Drivers are the business of `ordeal`.
    """
    chance = random.Random(fault.seed)
    if fault.signal == "SIGSTOP":
        longest = LOST if fault.victim == "node" else scene.lease
        pause(found, scene, patience, longest + chance.uniform(1.0, 3.0))
        if fault.victim == "node":
            # Ray may have taken it for lost; then it ends by itself.
            patience.until(lambda: not lives(found[0]), 5.0)
            _mend_node(scene)
        return
    away = chance.uniform(0.3, 4.0)
    match fault.victim:
        case "worker" | "mirror":
            send(found, signal.Signals[fault.signal])
        case "mlflow":
            _restart_mlflow(fault, scene, found, patience, away)
        case "database":
            _restart_database(fault, scene, found, patience, away)
        case "node":
            send(found, signal.Signals[fault.signal])
            patience.until(lambda: not any(map(lives, found)), 20.0)
            patience.sleep(away)
            _mend_node(scene)


def pause(
    found: Collection[psutil.Process], scene: Scene, patience: Patience, seconds: float
) -> None:
    """Stop processes for a while."""
    scene.continued |= {p.pid for p in found}
    send(found, signal.SIGSTOP)
    try:
        patience.sleep(seconds)
    finally:
        send(found, signal.SIGCONT)


def _restart_mlflow(
    fault: Fault, scene: Scene, found: list[psutil.Process], patience: Patience, away: float
) -> None:
    server = scene.server
    assert server is not None
    assert server.process is not None
    os.killpg(server.process.pid, signal.Signals[fault.signal])
    patience.until(lambda: not any(map(lives, found)), 15.0)
    server.stop()
    patience.sleep(away)
    server.start()


def _restart_database(
    fault: Fault, scene: Scene, found: list[psutil.Process], patience: Patience, away: float
) -> None:
    database = scene.database
    assert database is not None
    if fault.signal == "SIGTERM":  # one connection, as by pg_terminate_backend
        send(found, signal.SIGTERM)
        return
    if fault.signal == "SIGKILL":  # everything at once, as when its machine loses power
        kill(found)
    database.stop()  # SIGQUIT: at once
    patience.sleep(away)
    database.start()


def _mend_node(scene: Scene) -> None:
    """Add another node if the last one has ended, or lost its raylet."""
    assert scene.cluster is not None
    nodes = scene.cluster.nodes
    process = nodes[-1]
    whole = below(process.pid)
    if process.poll() is None and any("raylet/raylet" in command_line(p) for p in whole):
        return
    with suppress(psutil.Error, subprocess.SubprocessError):
        scene.cluster.kill_node(len(nodes) - 1)
    kill(whole)
    scene.cluster.add_node()
