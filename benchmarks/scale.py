"""How far an E-step scales: the real claims of `emfast.em.queue`, with samplers that only sleep, in simulated time.

python benchmarks/scale.py                       # the table
python benchmarks/scale.py --workers 64 --save   # one row, appended to benchmarks/results/scale.jsonl

Every worker is a thread that runs the code of the queue on a folder in memory; one runs at a time, and sleeping moves a
common clock. Of 20 workers one is three times slower, the time of a batch varies by 10 %, a listing is 5 seconds old,
and a worker dies once in so many hours (a new one comes two minutes later). The ideal is the work over the speed of all
that live.
"""

import argparse
import json
import math
import random
import threading
from dataclasses import asdict, dataclass

import measure
import torch
from simulated_time import Clock, Memory, View

from emfast.em import lease as leases
from emfast.em.lease import Lease, Watch
from emfast.em.queue import Queue

DELAY = 120.0  # seconds until another worker takes the place of a dead one


@dataclass(frozen=True)
class Case:
    """What is simulated.

    Arguments:
        workers: How many there are.
        batches: How many batches of the usual speed each of them would make.
        seconds: The time of a batch.
        shards: Shards in a batch.
        hours: The mean time until a worker dies.
    """

    workers: int
    batches: int = 50
    seconds: float = 30.0
    shards: int = 1
    hours: float = 100.0


@dataclass(frozen=True)
class Scale:
    """What came out.

    Arguments:
        case: What was simulated.
        efficiency: The ideal time over the time until all shards are there.
        seconds: That time.
        operations: Of the file system, in all.
        operations_per_second: The mean.
        operations_at_peak: In the busiest second but the first ten, in which all begin.
        deaths: How many workers died.
        doubled: Shards that were made twice, as a share.
    """

    case: Case
    efficiency: float
    seconds: float
    operations: int
    operations_per_second: float
    operations_at_peak: int
    deaths: int
    doubled: float


class Simulation:
    """An E-step.

    Arguments:
        case: What to simulate.
        age: Seconds that a listing is old.
        seed: The key of everything random.
    """

    def __init__(self, case, age=5.0, seed=0):
        self.case, self.random = case, random.Random(seed)
        self.clock = Clock()
        self.claims, self.store = Memory(self.clock, age), Memory(self.clock, age)
        self.shards = [(index, index, index + 1) for index in range(case.workers * case.batches * case.shards)]
        self.lives, self.made, self.deaths = [], 0, 0  # (begin, end, speed) of every worker

    def worker(self, number):
        """Starts a worker, and its successor when it dies."""
        speed = 1 / 3 if number % 20 == 19 else 1.0
        lives = self.random.expovariate(1 / (3600 * self.case.hours))
        begin, death = self.clock.now, self.clock.now + lives
        self.lives.append((begin, death, speed))

        def run(sleep):
            lease = Lease(self.claims, clock=lambda: self.clock.now, name=f"worker-{number}-{begin}")
            lease.begin()
            self.clock.at(begin + self.random.random() * lease.beat, lambda: renew(lease))
            watch = Watch(self.claims, clock=lambda: self.clock.now)
            finished = View(self.store)
            queue = Queue(
                self.shards,
                lambda: [int(name) for name in finished.names()],
                View(self.claims),
                lease,
                watch,
                place=number / self.case.workers if begin == 0 else self.random.random(),
                clock=lambda: self.clock.now,
                sleep=sleep,
            )
            queue.look()
            self.work(queue, sleep, speed)

        def renew(lease):
            if self.clock.now < death:
                lease.worked()
                lease.renew()
                self.clock.at(self.clock.now + lease.beat, lambda: renew(lease))

        def replace():
            self.deaths += 1
            self.clock.at(self.clock.now + DELAY, lambda: self.worker(number))

        self.clock.at(death, replace)
        self.clock.start(run, death)

    def work(self, queue, sleep, speed):
        """What `e_step` does: batches of shards, and what others leave when there are no more."""
        while True:
            batch = []
            while len(batch) < self.case.shards:
                shard = queue.take()
                if shard is None and not batch:
                    shard = queue.rest()
                if shard is None:
                    break
                batch.append(shard[0])
            if not batch:
                return
            part = len(batch) / self.case.shards
            sleep(self.case.seconds * part / speed * math.exp(self.random.gauss(0, 0.1)))
            for index in batch:
                self.made += 1
                self.store.create(str(index), "")
                queue.made(index)

    def run(self):
        """Returns what comes out."""
        for number in range(self.case.workers):
            self.worker(number)
        end = self.clock.run(lambda: len(self.store.files) == len(self.shards))
        counts = {}
        for folder in (self.claims, self.store):
            for second, count in folder.operations.items():
                counts[second] = counts.get(second, 0) + count
        total = sum(counts.values())
        peak = max((count for second, count in counts.items() if second >= 10), default=0)
        doubled = self.made / len(self.shards) - 1
        return Scale(self.case, self.ideal() / end, end, total, total / end, peak, self.deaths, doubled)

    def ideal(self):
        """Returns when all would be done if no living worker ever waited, and nothing was made twice or lost."""
        work, now, speed = self.case.workers * self.case.batches * self.case.seconds, 0.0, 0.0
        changes = [(begin, speed) for begin, _, speed in self.lives] + [(end, -speed) for _, end, speed in self.lives]
        for moment, change in sorted(changes):
            if work <= (moment - now) * speed:
                break
            work, now, speed = work - (moment - now) * speed, moment, speed + change
        return now + work / speed


HEAD = """| workers | batches | shards | minutes | efficiency | deaths | made twice | operations / s | at peak |
|---:|---:|---:|---:|---:|---:|---:|---:|---:|"""


def line(row):
    """Returns a row of the table."""
    case = row["case"]
    shards = case["workers"] * case["batches"] * case["shards"]
    return (
        f"| {case['workers']} | {case['batches']} | {shards} | {row['seconds'] / 60:.1f} | {row['efficiency']:.1%} "
        f"| {row['deaths']} | {row['doubled']:.2%} | {row['operations_per_second']:.1f} | {row['operations_at_peak']} |"
    )


def table():
    """Returns the table of what was saved, of repeated cases the last."""
    rows = [json.loads(text) for text in (measure.RESULTS / "scale.jsonl").read_text().splitlines()]
    kept = {json.dumps(row["case"]): row for row in rows}
    commits = ", ".join(sorted({row["environment"]["commit"] for row in kept.values()}))
    lines = [line(row) for row in sorted(kept.values(), key=lambda row: row["case"]["workers"])]
    return "\n".join([HEAD, *lines, "", f"Simulated at {commits}: `python benchmarks/scale.py --save`."])


def main():
    """Simulates, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4, 16, 64, 256, 1000])
    parser.add_argument("--batches", type=int, default=Case.batches, help="of each worker")
    parser.add_argument("--seconds", type=float, default=Case.seconds, help="of a batch")
    parser.add_argument("--shards", type=int, default=Case.shards, help="in a batch")
    parser.add_argument("--hours", type=float, default=Case.hours, help="until a worker dies")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    if options.save and measure.is_dirty():
        raise SystemExit("scale: expected --save with all changes committed, got a changed tree. Commit first.")
    threading.stack_size(256 * 1024)
    print(f"a process is taken for dead after {leases.PATIENCE:g} seconds")
    print(HEAD)
    for workers in options.workers:
        case = Case(workers, options.batches, options.seconds, options.shards, options.hours)
        found = Simulation(case).run()
        print(line(asdict(found)), flush=True)
        if options.save:
            environment = measure.environment(torch.device("cpu"))
            measure.save([Saved(**vars(found), environment=environment)], "scale")


@dataclass(frozen=True)
class Saved(Scale):
    """A row of the results."""

    environment: dict


if __name__ == "__main__":
    main()
