"""CSV and parquet files in the shell: which lines are rows, and what is told of the others."""

import argparse
import gzip
import re

import numpy as np
import pandas as pd
import pytest

import skood
from skood import GMMDetector
from skood.commands import main
from skood.commands.tables import TableRows

X = np.round(np.random.default_rng(0).normal(size=(40, 3)), 3)
FIT = "fit --detector gmm --out out.safetensors --features"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    skood.save(GMMDetector().fit(X), "d.safetensors")
    return tmp_path


def run(line):
    try:
        return main(line.split())
    except SystemExit as stopped:
        return stopped.code


def read(path, **options):
    """Return all rows of a file as a DataFrame."""
    chunks = TableRows(path, argparse.Namespace(**options)).chunks(400)
    return pd.concat([pd.DataFrame(X) for X, _ in chunks])


@pytest.mark.filterwarnings("ignore:X has feature names")
@pytest.mark.parametrize("names", ["abc", "012"])
@pytest.mark.parametrize(
    "how",
    [{}, {"header": False}, {"sep": "\t"}, {"sep": ";", "header": False}]
    + [{"sep": ";", "decimal": ","}],
)
def test_csv_is_read_as_it_is_written(how, names, here):
    pd.DataFrame(X, columns=list(names)).to_csv("a.csv", index=False, **how)
    if "header" not in how:
        assert list(read("a.csv").columns) == list(names)
    np.testing.assert_array_equal(read("a.csv"), X)
    assert run("score d.safetensors a.csv --out s.csv") == 0
    scores = skood.load("d.safetensors").score_samples(X)
    np.testing.assert_allclose(pd.read_csv("s.csv").score, scores, rtol=1e-6)


def test_names_that_may_be_numbers_are_told(here):
    pd.DataFrame(np.eye(3, dtype=int)).to_csv("a.csv", index=False)
    with pytest.warns(UserWarning, match="'a.csv', 0, 1, 2, counts the columns: it is taken for"):
        assert len(read("a.csv")) == 3


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("names", ["abc", "012"])
def test_an_index_is_told_and_left_out_where_that_is_asked_for(names, here):
    pd.DataFrame(X, columns=list(names)).to_csv("a.csv")
    with pytest.warns(UserWarning, match="has no name and counts as a feature.*'Unnamed: 0'"):
        assert read("a.csv", ignore=None).shape == (40, 4)
    np.testing.assert_array_equal(read("a.csv", ignore=["Unnamed: 0"]), X)
    # What was learned from is known when rows are scored.
    assert read("a.csv").shape == (40, 4)


def test_the_index_of_parquet_is_no_feature(here):
    table = pd.DataFrame(X, index=pd.Index(range(7, 47), name="id"))
    table.to_parquet("a.parquet")
    assert list(read("a.parquet").columns) == ["0", "1", "2"]
    np.testing.assert_array_equal(read("a.parquet"), X)
    assert run(f"{FIT} a.parquet --ignore id") == 2


def bad_tables():
    """Write tables that cannot be used."""
    table = pd.DataFrame(X, columns=list("abc"))
    table.to_csv("a.csv", index=False), table.to_parquet("a.parquet"), np.save("a.npy", X)
    table.mask(table.index.to_numpy()[:, None] == [0, 9, 9]).to_csv("blank.csv", index=False)
    table.iloc[1:].to_csv("rest.csv", index=False, header=False)
    for name, first in {"first": ",1.5,2\n", "all": ",,\n"}.items():
        with open("rest.csv") as rest, open(f"{name}.csv", "w") as file:
            file.write(first + rest.read())
    labels = pd.Series(np.arange(40) % 3, dtype="Int64").mask(table.index == 5)
    table.assign(label=labels).to_csv("label.csv", index=False)
    table.assign(label=labels.map({0: "x", 1: "y", 2: "z"})).to_parquet("label.parquet")
    with open("a.csv", "rb") as file:
        whole = gzip.compress(file.read())
    with open("cut.csv.gz", "wb") as cut, open("bad.csv.gz", "wb") as bad:
        cut.write(whole[:-40]), bad.write(whole[:100] + bytes(80) + whole[180:])
    with open("more.csv", "w") as file:
        file.write("a,b\n1,2,3\n4,5,6\n")


BLANK = "it holds NaN or infinity"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("blank.csv", f"blank.csv, row 0: {BLANK}"),
        ("blank.csv --ignore a", f"blank.csv, row 9: {BLANK}"),
        ("first.csv", f"first.csv, row 0: {BLANK}"),
        ("all.csv", f"all.csv, row 0: {BLANK}"),
        ("label.csv --label-column label", "label.csv, row 5: its label is blank"),
        ("label.parquet --label-column label", "label.parquet, row 5: its label is blank"),
        ("cut.csv.gz", "cannot read 'cut.csv.gz': Compressed file ended"),
        ("bad.csv.gz", "cannot read 'bad.csv.gz': "),
        ("more.csv", "cannot read 'more.csv': .*Expected 2 fields in line 2, saw 3"),
        ("a.csv --ignore a b c", "no column of 'a.csv' is left to learn from"),
        ("a.csv --ignore a --label-column a", "'a' is named by both --label-column and --ignore"),
        ("a.csv --labels y.npy --label-column a", "--label-column: not allowed with .* --labels"),
        ("a.npy --ignore a", "--ignore: only for tables, .csv or .parquet, and not for 'a.npy'"),
        ("a.npy --label-column a", "--label-column: only for tables"),
        ("a.csv --size 8", "--size: only for folders and lists of images, and not for 'a.csv'"),
        ("a.csv --std 1 1 1", "--std: only for folders and lists of images"),
        ("a.csv --size 0", "--size: '0' is not a number of pixels"),
        ("a.csv --size -3", "--size: '-3' is not a number of pixels"),
        ("a.csv --std 1 0 1", "--std: '0' is not above 0"),
        ("a.npy --network none.pt2", "cannot read 'none.pt2': No such file"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(arguments, message, here, capsys):
    bad_tables()
    assert run(f"{FIT} {arguments}") == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1, error
    assert not list(here.glob("out*"))


def test_options_of_images_are_not_for_arrays(here, capsys):
    np.save("a.npy", X)
    assert run("score d.safetensors a.npy --mean 0 0 0") == 2
    assert "--mean: only for folders and lists of images" in capsys.readouterr().err
    assert run("evaluate --train a.npy --id a.npy --ood far=a.npy --network net.pt2") == 2
    assert "--network: only with --images" in capsys.readouterr().err


def test_damaged_tables_are_refused_or_read(here):
    random, table = np.random.default_rng(0), pd.DataFrame(X, columns=list("abc"))
    table.to_csv("a.csv.gz"), table.to_parquet("a.parquet")
    for name in ("a.csv.gz", "a.parquet"):
        with open(name, "rb") as file:
            whole = file.read()
        for _ in range(40):
            damaged = bytearray(whole)
            damaged[random.integers(len(whole))] ^= 1 << random.integers(8)
            with open(name, "wb") as file:
                file.write(damaged[: random.integers(len(whole) // 2, 2 * len(whole))])
            try:
                read(name)
            except ValueError as error:
                assert name in str(error)
