"""Simulate a campaign: how long many cells take on many workers, and what limits it.

    python -m tests.simulated_campaign TABLE [CELLS] [WORKERS] [SCALE] [PLOT.svg]

The durations of the cells are drawn from those of a table. A worker takes the next cell as soon as it is free, as Parsl's
workers do. Each start of a cell costs what the engine needs to hand it out. SCALE multiplies the durations.
"""

import heapq
import random
import statistics
import sys
from pathlib import Path

from harness.map import results_table

#: Seconds until the engine's workers are there, and from the end of a cell to the start of the next on that worker.
START, HANDOUT = 11.0, 0.5


def simulate(durations, workers):
    """Return (seconds until all has ended, share of the workers' time that cells took, spans as (worker, begin, end))."""
    free = [(START, worker) for worker in range(workers)]
    heapq.heapify(free)
    spans = []
    for seconds in durations:
        begin, worker = heapq.heappop(free)
        end = begin + HANDOUT + seconds
        spans.append((worker, begin + HANDOUT, end))
        heapq.heappush(free, (end, worker))
    total = max(end for _, _, end in spans)
    return total, sum(durations) / (workers * total), spans


def main(table, cells=400, workers=64, scale=1, plot=None):
    measured = [cell["seconds"] for cell in results_table.load(Path(table))["cells"] if cell["state"] == "judged"]
    draw = random.Random(0)
    durations = [float(scale) * draw.choice(measured) for _ in range(int(cells))]
    middle, longest = statistics.median(durations), max(durations)
    for order, chosen in (("in the order of the plan", durations), ("longest first", sorted(durations, reverse=True))):
        total, balance, spans = simulate(chosen, int(workers))
        print(f"{cells} cells on {workers} workers, {order}: {total / 60:.1f} min, balance {balance:.0%}")
    print(f"a cell takes {middle:.0f} s (median), {longest:.0f} s at most; measured: {len(measured)} cells")
    total, _, spans = simulate(durations, int(workers))
    tail = total - sorted(max(end for worker, _, end in spans if worker == at) for at in range(int(workers)))[0]
    print(f"what limits it: {tail / 60:.1f} min at the end, in which some workers have nothing left to do")
    if plot:
        draw_plot(spans, Path(plot))


def draw_plot(spans, file):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axis = figure.subplots()
    for worker, begin, end in spans:
        axis.plot([begin / 60, end / 60], [worker, worker], linewidth=2, solid_capstyle="butt")
    axis.set_xlabel("minutes")
    axis.set_ylabel("worker")
    axis.set_title("Simulated: each line is a cell on a worker")
    figure.savefig(file)


if __name__ == "__main__":
    main(*sys.argv[1:])
