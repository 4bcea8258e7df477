"""Compare the loss at many points at once, by torch.func.vmap, with one point after the other.

For a slice of the landscape the loss is evaluated, without gradients, at thousands of points. For
each experiment, on its training and its test set: the processor time of a point, one by one and in
batches of several sizes, interleaved; medians of several repeats, one thread.

    OMP_NUM_THREADS=1 python studies/batched_slices.py
"""

import statistics
import time

import torch

import geoflow as gf

SIZES = (1, 2, 8, 32)
REPEATS = 7
# Points of a repeat, and how far they are apart in each parameter.
POINTS, SPREAD = 32, 0.01
CASES = (("iris_ff", "train"), ("iris_ff", "test"), ("mpg_ff", "train"), ("mpg_ff", "test"))
CASES += (("mnist_ff", "train"), ("mnist_conv", "train"))


def main() -> None:
    """Print a table in Markdown."""
    torch.set_num_threads(1)
    print("| ms a point | examples | one by one |", end="")
    print("".join(f" vmap, {n} |" for n in SIZES[1:]), "largest relative difference |")
    print("|---" * (len(SIZES) + 3) + "|")
    for name, part in CASES:
        experiment = gf.experiments.get(name)
        start = experiment.start(0)
        data = getattr(start, part)
        # Chunks of 50 examples where the experiment has them, as its walks do.
        problem = gf.Problem.from_module(
            start.module.eval(), experiment.loss_fn, *data, batch_size=experiment.batch_size
        )
        generator = torch.Generator().manual_seed(0)
        points = POINTS if problem.n_chunks == 1 else 8
        noise = torch.randn(points, problem.n_parameters, generator=generator, dtype=problem.dtype)
        thetas = problem.theta0 + SPREAD * noise
        sizes = [n for n in SIZES if n <= points]
        one = torch.stack([problem.loss(theta) for theta in thetas])
        off = float((problem.losses(thetas) / one - 1).abs().max())
        times: dict[int, list[float]] = {n: [] for n in sizes}
        for _ in range(REPEATS if problem.n_chunks == 1 else 3):
            for n in sizes:
                before = time.process_time()
                if n == 1:
                    for theta in thetas:
                        problem.loss(theta)
                else:
                    for batch in thetas.split(n):
                        problem.losses(batch)
                times[n].append((time.process_time() - before) / points)
        cells = [f"{1e3 * statistics.median(times[n]):.2f}" if n in times else "" for n in SIZES]
        label = f"{name}, {'training' if part == 'train' else 'test'} set"
        row = (label, f"{len(data.targets):,}", *cells, f"{off:.0e}")
        print("|", " | ".join(row), "|", flush=True)


if __name__ == "__main__":
    main()
