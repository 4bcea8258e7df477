"""``ds.geoflow.plot``: the figures of a dataset, from the dataset itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import xarray as xr

from geoflow.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Plots:
    """Figures by name: ``ds.geoflow.plot.overview()``; the usual one: ``ds.geoflow.plot()``.

    The usual figure of a walk is its overview, and of anything else the first of its figures. A
    figure's hyphens are underscores here: ``ds.geoflow.plot.work_precision()``. Options are
    those of the figure's own function in :mod:`geoflow.plots`.
    """

    def __init__(self, ds: xr.Dataset) -> None:
        self._ds = ds

    def __call__(self, **options: Any) -> Figure:
        """Draw the dataset's usual figure.

        Raises
        ------
        InputError
            The dataset is none of geoflow's.
        """
        from geoflow.plots import kinds

        return kinds.draw(self._ds, kinds.names(self._ds)[0], **options)

    def __getattr__(self, name: str) -> Callable[..., Figure]:
        if name.startswith("_"):
            raise AttributeError(name)
        # Imported when something is drawn: matplotlib takes as long as all of geoflow.
        from geoflow.plots import kinds

        kind = name.replace("_", "-")
        there = self.__dir__()
        if name not in there:
            what = f"there are {', '.join(there)}" if there else "geoflow draws none of it"
            raise AttributeError(f"no figure {name!r} of this dataset; {what}")
        return partial(kinds.draw, self._ds, kind)

    def __dir__(self) -> list[str]:
        from geoflow.plots import kinds

        # What looks for attributes, as completion and hasattr do, asks of any dataset.
        try:
            there = kinds.names(self._ds)
        except InputError:
            return []
        return [name.replace("-", "_") for name in there]


@xr.register_dataset_accessor("geoflow")
class GeoflowAccessor:
    """What geoflow adds to a dataset, as ``ds.geoflow``.

    Attributes
    ----------
    plot : Plots
        The figures that can be drawn of it.
    """

    def __init__(self, ds: xr.Dataset) -> None:
        self.plot: Plots = Plots(ds)
