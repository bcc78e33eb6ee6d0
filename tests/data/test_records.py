"""The reader of all files: what cannot be read or be true is one line with the file's name."""

import numpy as np
import pytest

from cascade_keras import records
from cascade_keras.errors import InputError


class Spent(records.Record):
    crafting: records.NotNegative


def a_folder(file):
    file.mkdir()


def a_link_to_nowhere(file):
    file.symlink_to("nowhere")


def large(file):
    with open(file, "wb") as opened:
        opened.truncate(records.MOST_BYTES + 1)  # a hole, which takes no room


@pytest.mark.parametrize(
    "make, message",
    [
        (a_folder, "is not a file; remove it"),
        (a_link_to_nowhere, "is not a file; remove it"),
        (large, "is larger than 64 MB; remove it"),
        (lambda file: file.write_bytes(b"\xff\xfe{}"), "malformed"),
        (lambda file: file.write_text("[" * 100_000), "expected `object`"),
        (lambda file: file.write_text('{"crafting": -1}'), "crafting: expected `float` >= 0"),
        (lambda file: file.write_text('{"crafting": NaN}'), "malformed"),
        (lambda file: file.write_text('{"crafting": 1, "x": 2}'), "unknown field `x`"),
    ],
)
def test_a_json_file_that_cannot_be_is_refused(make, message, tmp_path):
    make(tmp_path / "spent.json")
    with pytest.raises(InputError, match=rf"^\S*spent.json.*({message})") as error:
        records.read(tmp_path / "spent.json", Spent, "remove it")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("make", [a_folder, a_link_to_nowhere])
def test_what_is_no_file_is_no_array(make, tmp_path):
    make(tmp_path / "a.npy")
    with pytest.raises(InputError, match=r"a\.npy is not a file; remove it"):
        records.map_array(tmp_path / "a.npy")


def test_what_is_not_there_is_not_damaged(tmp_path):
    for read in (lambda file: records.read(file, Spent), records.map_array):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "none")


def test_what_is_right_is_read(tmp_path):
    (tmp_path / "spent.json").write_text('{"crafting": 2}')
    assert records.read(tmp_path / "spent.json", Spent).crafting == 2
    assert records.read_values(tmp_path / "spent.json", Spent) == {"crafting": 2}
    array = np.arange(6, dtype=np.int16).reshape(2, 3)
    np.save(tmp_path / "a.npy", array)
    np.testing.assert_array_equal(records.map_array(tmp_path / "a.npy", (2, 3), "int16"), array)
