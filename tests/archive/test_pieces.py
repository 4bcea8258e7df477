import json
import os
import signal

import numpy as np
import pytest
import xarray as xr

import geoflow as gf
from geoflow import cli
from geoflow.analysis.curvature import spectra
from geoflow.archive.pieces import Pieces, are_kept, fingerprint, folder_beside
from geoflow.cli.terminal import BAD_INPUT, DONE, INTERRUPTED
from geoflow.errors import ArchiveError, InputError

QUICK = {"snapshots": [0, 1, -1], "k": 2, "n_trace": 6, "n_steps": 8, "n_probes": 2}


def piece(value):
    return xr.Dataset(
        {"x": ("n", [value, np.nan]), "name": ("m", ["a", "bc"])}, {"m": [1, 2]}, {"title": "t"}
    )


def never():
    raise AssertionError("computed again")


def test_pieces_are_kept_when_the_work_ends_early_and_used_again(tmp_path):
    target = tmp_path / "x.nc"

    def interrupted():
        with Pieces(target, {"a": 1}) as pieces:
            pieces.compute("0", lambda: piece(0.1))
            assert pieces.missing(["0", "1"]) == ["1"]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not target.exists()
    assert are_kept(target)
    with Pieces(target, {"a": 1}) as pieces:
        kept = pieces.compute("0", never)
        xr.testing.assert_identical(kept, piece(0.1))
        # How it was stored is nothing that the whole has from it.
        assert not any(v.encoding for v in (kept, *kept.variables.values()))
        pieces.finish(piece(0.1))
    assert not folder_beside(target).exists()
    with xr.open_dataset(target) as ds:
        xr.testing.assert_identical(ds.load(), piece(0.1))


def test_a_piece_half_written_or_damaged_is_made_again(tmp_path):
    target = tmp_path / "x.nc"
    with Pieces(target, {}) as pieces:
        pieces.compute("0", lambda: piece(1.0))
        pieces.compute("1", lambda: piece(2.0))
    folder = folder_beside(target)
    (folder / "2.nc.tmp").write_bytes(b"half")
    (folder / "1.nc").write_bytes((folder / "1.nc").read_bytes()[:100])
    with Pieces(target, {}) as pieces:
        assert pieces.missing(["0", "1", "2"]) == ["2"]
        pieces.compute("0", never)
        assert pieces.compute("1", lambda: piece(3.0))["x"][0] == 3
        assert pieces.compute("1", never)["x"][0] == 3
        assert pieces.compute("2", lambda: piece(4.0))["x"][0] == 4


def test_pieces_of_another_analysis_are_not_taken(tmp_path):
    target = tmp_path / "x.nc"
    with Pieces(target, {"seed": 1, "k": 2}) as pieces:
        pieces.compute("0", lambda: piece(1.0))
    refused = Pieces(target, {"seed": 2, "k": 2})
    with pytest.raises(InputError, match=r"seed: 1, not 2.*--force"), refused:
        pass
    with Pieces(target, {"seed": 1, "k": 2}, overwrite=True) as pieces:
        assert pieces.missing(["0"]) == []
    with Pieces(target, {"seed": 2, "k": 2}, overwrite=True) as pieces:
        assert pieces.missing(["0"]) == ["0"]
        pieces.compute("0", lambda: piece(1.0))
    settings = folder_beside(target) / "settings.json"
    assert json.loads(settings.read_text()) == {"seed": 2, "k": 2}
    settings.write_text("{")
    with pytest.raises(InputError, match="unreadable"), Pieces(target, {"seed": 2, "k": 2}):
        pass


def test_one_process_at_a_time(tmp_path):
    target = tmp_path / "x.nc"
    with Pieces(target, {}), pytest.raises(ArchiveError, match="in use"), Pieces(target, {}):
        pass
    # Nothing was computed, so nothing is left.
    assert os.listdir(tmp_path) == []


def test_without_a_target_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Pieces(None, {}) as pieces:
        assert pieces.missing(["0"]) == ["0"]
        xr.testing.assert_identical(pieces.compute("0", lambda: piece(1.0)), piece(1.0))
        pieces.finish(piece(1.0))
    assert os.listdir(tmp_path) == []


def test_a_target_that_is_there_is_refused_first(tmp_path):
    target = tmp_path / "x.nc"
    target.write_text("mine")
    with pytest.raises(InputError, match="exists"):
        Pieces(target, {})
    assert target.read_text() == "mine"


def test_the_fingerprint_is_that_of_the_walk(network, tmp_path):
    ds = gf.walk(network, t_end=0.05, max_snapshots=3, archive=tmp_path / "walk.nc")
    with gf.open_trajectory(tmp_path / "walk.nc") as again:
        assert fingerprint(ds) == fingerprint(again)
    assert fingerprint(ds.assign_attrs(seed=7)) != fingerprint(ds)
    assert fingerprint(ds.assign(train_loss=ds["train_loss"] + 1e-12)) != fingerprint(ds)
    assert fingerprint(ds.assign(theta=ds["theta"].astype("f4"))) != fingerprint(ds)
    # Whatever is made of it knows where its variables are from.
    made = xr.Dataset(ds.data_vars, ds.coords)
    with pytest.raises(InputError, match="it is made of this file"):
        Pieces(tmp_path / "walk.nc", {}, overwrite=True, of=made)


def press_ctrl_c_at(monkeypatch, call):
    """Interrupt the spectrum of one operator."""
    calls, density = [], spectra.spectral_density

    def pressed(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            signal.raise_signal(signal.SIGINT)
        return density(*args, **kwargs)

    monkeypatch.setattr(spectra, "spectral_density", pressed)
    return calls


def test_spectra_interrupted_go_on_to_the_same_numbers(network, tmp_path, monkeypatch):
    ds = gf.walk(network, t_end=0.1, max_snapshots=4)
    whole = spectra.along(ds, network, **QUICK)
    target = tmp_path / "spectra.nc"
    # Two operators a snapshot: the fourth call is in the second snapshot.
    calls = press_ctrl_c_at(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt):
        spectra.along(ds, network, archive=target, **QUICK)
    with pytest.raises(InputError, match="k: 2, not 3"):
        spectra.along(ds, network, archive=target, **(QUICK | {"k": 3}))
    before = len(calls)
    found = spectra.along(ds, network, archive=target, **QUICK)
    # Of the first snapshot nothing is computed again.
    assert len(calls) - before == 4
    xr.testing.assert_identical(found, whole)
    with xr.open_dataset(target) as kept:
        xr.testing.assert_identical(kept.load(), whole)
    assert os.listdir(tmp_path) == ["spectra.nc"]


def test_the_command_says_how_long_and_how_to_go_on(network, tmp_path, monkeypatch, capsys):
    walk, target = tmp_path / "walk.nc", tmp_path / "spectra.nc"
    gf.walk(network, t_end=0.1, max_snapshots=4, archive=walk)
    monkeypatch.setattr(
        "geoflow.cli.analysis_commands.experiments.rebuild",
        lambda attributes, device: type("Rebuilt", (), {"flow": network}),
    )
    arguments = ["spectrum", str(walk), "--out", str(target), "--snapshots", "0,1,-1"]
    arguments += ["--eigenvalues", "2", "--probes", "2", "--steps", "8"]
    press_ctrl_c_at(monkeypatch, 4)
    assert cli.main(arguments) == INTERRUPTED
    said = capsys.readouterr().err
    assert "spectra of 3 snapshots: " in said
    assert "Hessian-vector products" in said
    assert "the same command goes on" in said
    assert cli.main([*arguments, "--seed", "1"]) == BAD_INPUT
    assert "seed: 0, not 1" in capsys.readouterr().err
    assert cli.main(arguments) == DONE
    assert "spectra of 2 snapshots: " in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["spectra.nc", "walk.nc"]
