"""One self-contained page about walks, regularisation paths and weight-decay trainings."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib import resources
from importlib.metadata import version
from pathlib import Path

import jinja2
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from geoflow import baselines, plots
from geoflow.analysis import PCA
from geoflow.analysis.components import pca
from geoflow.archive.inputs import expand
from geoflow.archive.parts import check_free
from geoflow.errors import InputError, RankError
from geoflow.plots.trajectory import shown_names
from geoflow.report.comparisons import comparison_section
from geoflow.report.parts import Picture, Row, Section, Table, picture, synthetic
from geoflow.report.paths import path_section
from geoflow.report.reading import Runs, n_constraints, read
from geoflow.report.walks import SHORT, names_of, run_table, sentence
from geoflow.sweeps import ensemble
from geoflow.system import locks, translation
from geoflow.system.files import check_apart
from geoflow.system.messages import printable
from geoflow.trajectories import schema
from geoflow.trajectories.consistency import OURS
from geoflow.trajectories.names import walk_name

Floats = NDArray[np.float64]
COMPONENTS, DRAWN = 6, 3
# The R of the paper, which is that of weight decay.
SQUARED_NORM = "squared_norm"


def report(
    files: Sequence[str | Path], out: str | Path, *, overwrite: bool = False
) -> list[Section]:
    """Write one HTML page that needs nothing but itself.

    Walks of one experiment with one network, down the same R on as many constraints, with the same
    solver and tolerances, make a section; of those without an experiment, walks with the same data,
    or where there are none, on the same level. It has their runs one by one; angle, R, test loss
    and test accuracy, mean ± standard deviation over the runs; the table of Tahir & Katz (2021),
    every penalty of weight decay beside the walks' start and end; the principal components of all
    points of all walks. A regularisation path makes one of its own, and so does a comparison of
    solvers.

    Parameters
    ----------
    files : sequence of str or Path
        Trajectories, paths, baselines and comparisons, or folders of them, in any order.
    out : str or Path
        The page.
    overwrite : bool
        Replace ``out`` where it exists.

    Returns
    -------
    list of Section
        What is on the page.

    Raises
    ------
    InputError
        No files, or ``out`` cannot be used, or is one of them.
    ArchiveError
        A file that is none of these, or writing failed. A StorageError where another file got the
        name of ``out`` meanwhile, and the page is beside it.
    """
    out = check_free(out, overwrite=overwrite)
    paths = expand(files)
    check_apart(out, paths, "out")
    given = read(paths)
    alone = sorted(set(given.trainings) - {subject for subject, *_ in given.walks})
    sections: list[Section] = []
    named: list[str] = []
    for subject, runs in [
        *((key[0], runs) for key, runs in sorted(given.walks.items())),
        *((subject, Runs()) for subject in alone),
    ]:
        with translation.reading(f"one of the files of {subject!a}", "what a page can show"):
            baseline = given.baseline(subject)
            sections.append(_section(subject, runs.walks, baseline, len(sections)))
            named.append(", ".join(map(str, runs.paths)))
    titles = [section.title for section in sections]
    for section, names in zip(sections, named, strict=True):
        # They differ in what a title does not say: data, network, atol or options of the solver.
        if titles.count(section.title) > 1:
            section.summary = f"Of {names}."
    for subject, path, ds in given.followed:
        with translation.reading(path, "what a page can show"):
            sections.append(path_section(subject, ds, given.baseline(subject), len(sections)))
    for path, ds in given.compared:
        with translation.reading(path, "what a page can show"):
            sections.append(comparison_section(ds, len(sections)))
    script = resources.files("geoflow.report").joinpath("templates/report.js").read_text("utf-8")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("geoflow.report"),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
        # Escape codes are no characters of HTML, and marks of direction turn what follows round.
        finalize=_shown,
    )
    page = environment.get_template("report.html").render(
        title=" · ".join(dict.fromkeys(s.title.split(":")[0] for s in sections)) + ": report",
        version=version("geoflow"),
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        n_files=len(paths),
        script=script,
        # No other script runs on the page, whatever a value in a file holds.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        sections=sections,
    )
    whole = locks.replacing(out, overwrite=overwrite)
    with translation.writing(out), whole as temporary:
        temporary.write_text(page, encoding="utf-8")
    return sections


def _shown(value: object) -> object:
    """A value of the template; of text what can be printed, geoflow's own markup aside."""
    return printable(value) if type(value) is str else value


def penalty_table(walks: Sequence[xr.Dataset], baseline: xr.Dataset | None) -> Table:
    """Build the paper's table: the walks' start and end, and every penalty, mean ± std.

    Trainings have ‖θ‖² alone: another R of the walks has a column of its own beside it.

    Parameters
    ----------
    walks : sequence of Dataset
        Trajectories of one experiment.
    baseline : Dataset or None
        From :func:`geoflow.baselines.weight_decay <geoflow.baselines.decay_training.weight_decay>`.
    """
    names = ["test_loss", "test_accuracy"]
    has = [n for n in names if all(n in ds for ds in (*walks, *([baseline] if baseline else [])))]
    norms = _norm_columns(walks)
    head = ["", "runs", *norms, *(n.replace("_", " ") for n in has), "validation loss"]
    rows = []
    for name, index in (("walk: start", 0), ("walk: end", -1)):
        if walks:
            cells = [name, str(len(walks))]
            cells += [mean_std([at(ds, index) for ds in walks]) for at in norms.values()]
            cells += [mean_std([float(ds[n][index]) for ds in walks], n) for n in has]
            rows.append(Row([*cells, "–"], marked=True))
    if baseline is not None:
        best = {by: baselines.best_penalty(baseline, by) for by in _criteria(baseline)}
        for penalty in baseline["penalty"].values:
            one = baseline.sel(penalty=penalty)
            marks = "".join(m for m, by in _marks(best).items() if best[by] == penalty)
            cells = [f"penalty {penalty:g} {marks}".strip(), str(baseline.sizes["run"])]
            cells += ["–"] * (len(norms) - 1)
            cells.append(mean_std(one["regularizer"].values))
            cells += [mean_std(one[n].values[:, -1], n) for n in has]
            cells.append(mean_std(one["validation_loss"].values[:, -1]))
            rows.append(Row(cells, marked=bool(marks)))
    caption = "Start and end of the walks"
    if baseline is not None:
        caption += (
            f", and training with weight decay, {baseline.attrs['epochs']} epochs at each penalty. "
            "†: the penalty with the best mean test loss, chosen on the set it is judged by, as in "
            "the paper. ‡: the penalty with the best mean validation loss, from a second training "
            "without the validation part."
        )
    return Table("penalties", caption, head, rows)


def _norm_columns(walks: Sequence[xr.Dataset]) -> dict[str, Callable[[xr.Dataset, int], float]]:
    """Heads of R of walks and ‖θ‖² of all, the latter last, and each at a walk's start or end."""
    # A flow of one's own need not record it.
    known = all("regularizer" in ds for ds in walks)

    def recorded(ds: xr.Dataset, index: int) -> float:
        return float(ds["regularizer"][index])

    def computed(ds: xr.Dataset, index: int) -> float:
        theta = ds["theta"].isel(snapshot=index).values.astype(float)
        return float(theta @ theta)

    names = {str(ds.attrs["regularizer_name"]) for ds in walks}
    if known and names <= {SQUARED_NORM}:
        return {"R = ‖θ‖²": recorded}
    # Of different functions there is no mean.
    own = {f"R = {name}": recorded for name in names} if known and len(names) == 1 else {}
    return {**own, "‖θ‖²": computed}


def mean_std(values: Sequence[float] | Floats, name: str = "") -> str:
    """Write mean ± standard deviation (n − 1); accuracies in per cent.

    Of values of which some are not known, those of the others, and how many they are.
    """
    array = np.asarray(values, dtype=float) * (100 if name.endswith("accuracy") else 1)
    known = array[~np.isnan(array)]
    if not known.size:
        return "–"
    digits = ".1f" if name.endswith("accuracy") else ".4g"
    unit = "%" if name.endswith("accuracy") else ""
    text = f"{known.mean():{digits}}"
    if known.size > 1 and np.isfinite(known).all():
        text += f" ± {known.std(ddof=1):{'.1f' if unit else '.2g'}}"
    of = f" ({known.size} of {array.size})" if known.size < array.size else ""
    return f"{text}{unit}{of}"


def _section(
    subject: str, walks: list[xr.Dataset], baseline: xr.Dataset | None, number: int
) -> Section:
    called = names_of(walks)
    of_another = None
    if walks and baseline is not None:
        sizes = [ds.sizes["parameter"] for ds in (walks[0], baseline)]
        if sizes[0] != sizes[1]:
            of_another = (
                f"Left out: trainings with weight decay, of a network of {sizes[1]:,} parameters; "
                f"these walks are of one of {sizes[0]:,}."
            )
            baseline = None
    if walks:
        n, a = len(walks), walks[0].attrs
        plural = "s" if n > 1 else ""
        what = f"{n} walk{plural}, {a['solver']}, rtol {a['rtol']:g}, {a['dtype']}"
        if (name := a["regularizer_name"]) not in (SQUARED_NORM, ""):
            what += f", R = {name}"
        if (flow := a.get(schema.FLOW, OURS)) != OURS:
            what += f", {flow}"
        if (constraints := n_constraints(a)) > 1:
            what += f", {constraints} constraints"
    else:
        what = "weight decay"
    section = Section(f"{subject}: {what}")
    section.warnings += synthetic(subject)
    section.warnings += [] if of_another is None else [of_another]
    for ds, name in zip(walks, called, strict=True):
        if (status := ds.attrs["status"]) not in schema.REACHED:
            text = f"{name} ended early: {status}, {ds.attrs['status_message']}."
            section.warnings.append(text)
    section.sentences += [sentence(ds, name) for ds, name in zip(walks, called, strict=True)]
    if walks:
        section.parts.append(run_table(walks, called))
        mean, left_out = _mean(walks, called)
        section.warnings += left_out
        section.parts += _stack(walks, mean)
    if walks or baseline is not None:
        section.parts.append(penalty_table(walks, baseline))
    if baseline is not None:
        figure = plots.penalties(baseline, walks)
        caption = "Test loss after training at each penalty, beside the walks' start and end."
        section.parts.append(picture("penalties-figure", figure, caption, caption))
    n_points = sum(ds.sizes["snapshot"] for ds in walks)
    if n_points > 4 and walks[0].sizes["parameter"] > 2:
        section.parts += _pca_parts(walks, baseline)
    if number:
        # Ids are those of one thing on a page.
        section.parts = [replace(part, id=f"{part.id}-{number}") for part in section.parts]
    return section


def _mean(
    walks: Sequence[xr.Dataset], called: Sequence[str]
) -> tuple[xr.Dataset | None, list[str]]:
    """The walks on one axis where there are two that can be, and what is said of the others."""
    if not walks[1:]:
        return None, []
    try:
        there, without = ensemble.with_range(walks)
        kept = [i for i, ds in enumerate(walks) if any(ds is one for one in there)]
        # By their places among all, as everywhere on the page.
        names = [walk_name(walks[i].attrs["seed"], i) for i in kept]
        mean = ensemble.on_axis(there, names) if there[1:] else None
    except InputError as error:
        return None, [f"No mean against flow time is drawn: {error}."]
    # A point has a start and an end, which are in the means of those.
    what = (
        "no mean against flow time is drawn"
        if mean is None
        else "it is not in the mean against flow time, but in those of the starts and ends"
    )
    return mean, [
        f"{name} {'made no step' if ds.sizes['step'] == 1 else 'has one snapshot'}: {what}."
        for ds, name in zip(walks, called, strict=True)
        if any(ds is one for one in without)
    ]


def _stack(walks: Sequence[xr.Dataset], mean: xr.Dataset | None) -> list[Picture]:
    """The figure of all walks, where there is something that all of them have."""
    names = shown_names(walks, alone=False)
    if not names:
        return []
    words = [SHORT.get(name, name.replace("_", " ")) for name in names]
    shown = f"{', '.join(words[:-1])} and {words[-1]}" if words[1:] else words[0]
    shown = shown[0].upper() + shown[1:]
    band = (
        ""
        if mean is None
        else "; thin: the runs; thick, with the band: mean ± standard deviation, as far as the "
        "shortest walk goes"
    )
    caption = f"{shown} against flow time{band}."
    if "angle" in names:
        caption += (
            " The angle is far stiffer than θ: where runs at loose tolerances differ in it alone, "
            "read nothing into that."
        )
    figure = plots.sweep_stack(walks, mean)
    return [picture("stack", figure, f"{shown} of {len(walks)} walks", caption)]


def _components(walks: Sequence[xr.Dataset], most: int) -> xr.Dataset | None:
    """As many principal components as the points span, at most so many; None where too few."""
    for n in range(most, DRAWN - 1, -1):
        try:
            return pca.along(walks, n, standardise=True)
        except RankError:
            continue
    return None


def _pca_parts(walks: Sequence[xr.Dataset], baseline: xr.Dataset | None) -> list[Picture | Table]:
    n = sum(ds.sizes["snapshot"] for ds in walks)
    found = _components(walks, min(COMPONENTS, n - 1, walks[0].sizes["parameter"]))
    if found is None:
        return []
    fitted = PCA.of(found)
    ends = {"mean end": np.mean([ds["theta"][-1].values for ds in walks], axis=0)}
    if baseline is not None:
        chosen: dict[float, list[str]] = {}
        for by in _criteria(baseline):
            chosen.setdefault(baselines.best_penalty(baseline, by), []).append(by.replace("_", " "))
        for penalty, names in chosen.items():
            mean = baseline["theta"].sel(penalty=penalty).mean("run").values
            ends[f"mean end, weight decay {penalty:g} (best {' and '.join(names)})"] = mean
    marks = {name: fitted.transform(end[None])[0] for name, end in ends.items()}
    figure = plots.pca_space(found, marks)
    shown = 100 * fitted.explained_variance_ratio[:3].sum()
    caption = (
        f"Principal components of all {n} points of the walks, each parameter "
        f"standardised, as in the paper. The first three show {shown:.1f}% of the variance; below "
        "is how far each point lies off what is drawn. Trainings from different first weights end "
        "in networks that differ by permutations of their units too, so that a mean over runs is "
        "a point that no run comes to."
    )
    alt = "Walks in their first three principal components, and their distance from them"
    ratios = fitted.explained_variance_ratio
    rows = [
        Row([str(i + 1), f"{100 * r:.2f}%", f"{100 * ratios[: i + 1].sum():.2f}%"])
        for i, r in enumerate(ratios)
    ]
    table = Table("variance", "Variance explained.", ["component", "alone", "up to here"], rows)
    off = [[name, f"{fitted.distance(end[None], 3)[0]:.4g}"] for name, end in ends.items()]
    distances = Table(
        "off-plane",
        "Distance of the marked points from the three components drawn, in standardised units.",
        ["point", "distance"],
        [Row(cells) for cells in off],
    )
    return [picture("pca", figure, alt, caption), table, distances]


def _criteria(baseline: xr.Dataset) -> list[str]:
    """By what a penalty can be chosen: the test set as in the paper, and what was held out."""
    held_out = bool(np.isfinite(baseline["validation_loss"]).any())
    return ["test_loss", *["validation_loss"][: int(held_out)]]


def _marks(best: dict[str, float]) -> dict[str, str]:
    marks = {"†": "test_loss", "‡": "validation_loss"}
    return {mark: by for mark, by in marks.items() if by in best}
