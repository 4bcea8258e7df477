"""Which part of a walk's time is spent outside the loss and its gradient: mnist_ff, seed 0.

python studies/overhead.py
"""

import time

import geoflow as gf


def main() -> None:
    """Walk to 175° with the default solver and print where the time went."""
    prepared = gf.experiments.get("mnist_ff").prepare(seed=0)
    problem = prepared.problem
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    # What torch imports and compiles on first use is paid once, by the first steps of any walk.
    gf.walk(flow, max_evaluations=30, max_snapshots=2)
    spent = {"value_and_gradient": 0.0, "regularizer": 0.0}

    def timed(name, function):
        def call(*args):
            start = time.perf_counter()
            result = function(*args)
            spent[name] += time.perf_counter() - start
            return result

        return call

    problem.value_and_gradient = timed("value_and_gradient", problem.value_and_gradient)
    make = flow.regularizer_hessian
    flow.regularizer_hessian = lambda *args: timed("regularizer", make(*args))
    start = time.perf_counter()
    ds = gf.walk(flow, max_snapshots=2)
    total = time.perf_counter() - start
    evaluations = int(ds["n_gradient"][-1])
    print(f"{evaluations} gradients to {float(ds['angle'][-1]):.1f}°, {total:.1f} s")
    print(f"loss and gradient: {100 * spent['value_and_gradient'] / total:.1f} % of the time")
    print(f"products with the Hessian of R: {100 * spent['regularizer'] / total:.1f} %")
    rest = total - sum(spent.values())
    print(f"the rest, all of the solver and the records: {100 * rest / total:.1f} %")


if __name__ == "__main__":
    main()
