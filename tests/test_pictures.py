"""PNG files against Pillow's reader, sheets, and what ``mmgen doctor`` reads off a board."""

import io
from pathlib import Path

import numpy as np
import pytest

from mmgen.runtime import doctor
from mmgen.runtime.pictures import png, sheet

PICTURES = np.random.default_rng(0).integers(0, 256, (5, 7, 9, 3), np.uint8)


@pytest.mark.parametrize("shape", [(1, 1, 3), (7, 9, 3), (64, 48, 3), (7, 9)])
def test_pillow_reads_the_same_pixels(shape: tuple[int, ...]) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is the oracle; the runtime does without it")
    picture = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    read = image.open(io.BytesIO(png(picture, {"mmgen": '{"prompt": "café"}'})))
    read.load()
    assert np.array_equal(np.asarray(read), picture)
    assert read.text == {"mmgen": '{"prompt": "café"}'}


@pytest.mark.parametrize(("count", "columns"), [(2, 2), (3, 3), (4, 2), (5, 5), (7, 4), (8, 4), (9, 3), (12, 4)])
def test_a_sheet_leaves_as_few_places_empty_as_it_can(count: int, columns: int) -> None:
    page = sheet(np.zeros((count, 10, 10, 3), np.uint8), gap=0)
    assert page.shape == (-(-count // columns) * 10, columns * 10, 3)


def test_pictures_lie_row_by_row_on_white() -> None:
    page = sheet(PICTURES, columns=3, gap=2)
    assert page.shape == (7 + 2 + 7, 9 + 2 + 9 + 2 + 9, 3)
    assert np.array_equal(page[:7, 11:20], PICTURES[1])
    assert np.array_equal(page[9:, :9], PICTURES[3])
    assert (page[7:9] == 255).all() and (page[9:, 22:] == 255).all()


def test_one_picture_is_its_own_sheet() -> None:
    assert np.array_equal(sheet(PICTURES[:1]), PICTURES[0])


def test_doctor_knows_a_jetson(tmp_path: Path) -> None:
    for file, content in {
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n",
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
        "proc/meminfo": "MemTotal:        7802000 kB\nMemFree:   1 kB\nMemAvailable:    5000000 kB\n",
        "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release\n",
    }.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(content)
    found = doctor.record(tmp_path)
    assert found["board"] == "NVIDIA Jetson Orin Nano Developer Kit"
    assert (found["jetson_linux"], found["jetpack"]) == ("36.4.3", 6)
    assert found["nvidia_driver"] == "540.4.0"
    assert found["memory_available_bytes"] == 5_000_000 * 1024
    assert "NVIDIA Jetson Orin Nano Developer Kit" in doctor.text(found)


def test_doctor_leaves_out_what_is_not_there(tmp_path: Path) -> None:
    found = doctor.record(tmp_path)
    assert found["board"] is found["jetson_linux"] is found["nvidia_driver"] is found["memory_bytes"] is None
    assert "board" not in doctor.text(found)
