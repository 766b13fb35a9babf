"""Kills runs at random moments, goes on with them, and compares their ends: python -m cluster.kills [HOW_MANY].

In turn a run of one process, of two, and of one with two that join, with rounds and without; of those one is killed by
kill -9, or all are. Two processes of a job differ from one by rounding, so that they are compared with two that nobody
killed.
"""

import os
import random
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

sys.path.append(str(Path(__file__).parent))  # for the sampler, here and in the processes

from cluster.hosts import PARTS, Host, close, config, hurry, same
from cluster.test_ranks import job

PATIENCE = 15.0  # seconds: a busy machine may let a process wait for several
KINDS = {  # processes of the job, others, and what differs from a run with rounds
    "alone": (1, 0, {}),
    "ranks": (2, 0, {}),
    "joined": (1, 2, {}),
    "alone without rounds": (1, 0, PARTS),
    "ranks without rounds": (2, 0, PARTS),
    "joined without rounds": (1, 2, PARTS),
}


def patient():
    """Makes all that waits wait long enough for a machine with other things to do."""
    hurry(PATIENCE)


def begin(stack, kind, folder):
    """Begins the processes of a run; returns those of the job, and all."""
    ranks, guests, changes = KINDS[kind]
    words = ["train", "--config", config(folder, 0.05, **changes)]

    def host(words, log):
        return stack.enter_context(Host(words, folder / log, before=patient))

    hosts = job(stack, words, folder, ranks, before=lambda _: patient) if ranks > 1 else [host(words, "log")]
    others = [host(["work", folder / "run", "--wait", "1"], f"guest-{number}") for number in range(guests)]
    return hosts, [*hosts, *others]


def killed(kind, folder, generator, seconds):
    """Runs, kills at a random moment of so many seconds, and says whether that came before the end."""
    with ExitStack() as stack:
        hosts, everyone = begin(stack, kind, folder)
        end = time.monotonic() + generator.uniform(0, seconds)
        while time.monotonic() < end:
            if not any(host.process.is_alive() for host in hosts):
                return False
            time.sleep(0.01)
        for host in everyone if generator.random() < 0.5 else [generator.choice(everyone)]:
            host.send(signal.SIGKILL)
        for host in hosts:
            host.end(60)
    return True


def whole(kind, folder):
    """Runs to the end; returns the seconds, or what a process said that failed."""
    begun = time.monotonic()
    with ExitStack() as stack:
        hosts, _ = begin(stack, kind, folder)
        codes = [host.end(600) for host in hosts]
        if any(code != 0 for code in codes):
            return "\n".join(host.said for host in hosts)
    return time.monotonic() - begun


def main(count):
    """Returns how many of the kills led to a failure or to another model."""
    generator, bad, done = random.Random(os.environ.get("SEED", "0")), 0, 0
    with tempfile.TemporaryDirectory() as scratch:
        expected = {kind: Path(scratch) / kind.replace(" ", "-") for kind in KINDS}
        seconds = {kind: whole(kind, folder) for kind, folder in expected.items()}
        number = 0
        while done < count:
            kind, folder = list(KINDS)[number % len(KINDS)], Path(scratch) / str(number)
            number += 1
            kills = 0
            while done < count and kills < 5 and killed(kind, folder, generator, 1.2 * seconds[kind]):
                kills, done = kills + 1, done + 1
            end = whole(kind, folder)
            good = not isinstance(end, str)
            equal = good and (close if KINDS[kind][0] > 1 else same)(expected[kind], folder)
            bad += not equal
            print(f"{kind}: {kills} kills, {'the same' if equal else 'ANOTHER MODEL' if good else end}", flush=True)
    print(f"{done} kills, {bad} runs failed or ended differently")
    return bad


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 100) > 0)
