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
        draw_plot(durations, int(workers), Path(plot))


def draw_plot(durations, workers, file):
    """Draw which worker has which cell when, and how time and balance change with the number of workers."""
    from matplotlib.figure import Figure

    total, balance, spans = simulate(durations, workers)
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    colours = ("#4477aa", "#ccbb44")  # in turn, so that two cells in a row are told apart
    cells_of = [0] * workers
    for worker, begin, end in spans:
        colour = colours[cells_of[worker] % 2]
        cells_of[worker] += 1
        left.broken_barh([(begin / 60, (end - begin) / 60)], (worker - 0.45, 0.9), color=colour, linewidth=0)
    left.axvline(total / 60, color="black", linewidth=0.8)
    left.set(xlabel="minutes", ylabel="worker", xlim=(0, total / 60 * 1.02), ylim=(-1, workers))
    left.set_title(
        f"{len(durations)} cells on {workers} workers: {total / 60:.0f} min, balance {balance:.0%} (simulated)"
    )
    counts = [number for number in (8, 16, 32, 64, 128, 256, 400) if number <= len(durations)]
    found = [simulate(durations, number) for number in counts]
    right.plot(counts, [seconds / 60 for seconds, _, _ in found], marker="o", color=colours[0])
    right.axhline(30, color="grey", linestyle=":", linewidth=1)
    right.axhline(max(durations) / 60, color="grey", linestyle="--", linewidth=1)
    right.annotate("30 min", (counts[0], 30), va="bottom", fontsize=8)
    right.annotate("the longest cell", (counts[0], max(durations) / 60), va="top", fontsize=8)
    right.set(xscale="log", yscale="log", xlabel="workers", ylabel="minutes")
    right.set_xticks(counts, [str(number) for number in counts])
    right.minorticks_off()
    for number, (seconds, share, _) in zip(counts, found, strict=True):
        right.annotate(f"{share:.0%}", (number, seconds / 60), xytext=(0, 6), textcoords="offset points", fontsize=8)
    right.set_title("minutes, and balance beside each point")
    right.margins(0.12)
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:])
