"""Pictures as cameras, microscopes and browsers leave them: turned, in stacks, animated, deeper than 8 bits, linked."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from emfast.data import load

GENERATOR = np.random.default_rng(0)
BYTES = GENERATOR.integers(0, 256, (4, 6, 8), dtype=np.uint8)
WORDS = GENERATOR.integers(0, 65536, (6, 8, 4), dtype=np.uint16)


def frames(mode: str = "L") -> list[Image.Image]:
    return [Image.fromarray(page).convert(mode) for page in BYTES]


def png(channels: int, kind: int) -> bytes:
    """A PNG of WORDS, each row with a filter of its own."""
    rows, width, previous = [], 2 * channels, bytes(8 * 2 * channels)
    for index, row in enumerate(WORDS[..., :channels].astype(">u2")):
        line, filtered = row.tobytes(), bytearray([index % 3])
        for i, value in enumerate(line):
            left = line[i - width] if i >= width else 0
            filtered.append((value - (0, left, previous[i])[index % 3]) % 256)
        rows.append(bytes(filtered))
        previous = line
    header = struct.pack(">IIBBBBB", 8, 6, 16, kind, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b""))
    content = b"\x89PNG\r\n\x1a\n"
    for name, data in chunks:
        content += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return content


def tiff(array: np.ndarray, order: str, base: int = 0, **others: int) -> bytes:
    """An uncompressed TIFF of one picture, (H, W) or (H, W, C), at a place in a file."""
    height, width, *channels = array.shape
    count = channels[0] if channels else 1
    bits = array.itemsize * 8
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: 2 if channels else 1, 277: count, 278: height, 284: 1}
    tags |= {int(name[1:]): value for name, value in others.items()} | {273: 0, 279: array.nbytes}
    depths = base + 8 + 2 + 12 * len(tags) + 4  # where the bits of each channel stand
    tags[273] = depths + 2 * count
    entries = [struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in sorted(tags.items())]
    if count > 1:
        entries[sorted(tags).index(258)] = struct.pack(f"{order}HHII", 258, 3, count, depths)
    start = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(tags))
    pixels = array.astype(array.dtype.newbyteorder(order)).tobytes()
    return start + b"".join(entries) + bytes(4) + struct.pack(f"{order}{count}H", *[bits] * count) + pixels


def refused(path: Path, pattern: str, kind: type[Exception] = ValueError) -> None:
    with pytest.raises(kind, match=pattern) as error:
        load(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_upright(tmp_path: Path, name: str, orientation: int) -> None:
    quarters = np.kron([[0, 80], [160, 240]], np.ones((8, 16))).astype(np.uint8)
    exif = Image.Exif()
    exif[274] = orientation
    stored = quarters if orientation < 5 else quarters.T
    a = stored.astype(int)
    turned = {
        2: a[:, ::-1],
        3: a[::-1, ::-1],
        4: a[::-1],
        5: a.T,
        6: np.rot90(a, -1),
        7: a[::-1, ::-1].T,
        8: np.rot90(a),
    }
    if name == "a.tif":
        (tmp_path / name).write_bytes(tiff(stored, "<", t274=orientation))
    else:
        Image.fromarray(stored).save(tmp_path / name, exif=exif, quality=100)
    image = load(tmp_path / name)
    assert image.shape[1:] == (16, 32)
    expected = turned.get(orientation, a)
    assert np.abs(image.tensor[0, 0].numpy().astype(int) - expected).max() < 12


def test_all_pages_of_a_tiff_file(tmp_path: Path) -> None:
    first, *rest = frames()
    first.save(tmp_path / "b.tif", save_all=True, append_images=rest)
    Image.fromarray(BYTES[0]).save(tmp_path / "a.png")
    expected = torch.tensor(np.concatenate([BYTES[:1], BYTES]))[:, None]
    assert torch.equal(load(tmp_path / "b.tif").tensor, expected[1:])
    assert torch.equal(load(tmp_path).tensor, expected)
    assert torch.equal(load(tmp_path, limit=3).tensor, expected[:3])
    first.save(tmp_path / "b.tif", save_all=True, append_images=[rest[0].resize((4, 4))])
    refused(tmp_path, r"b.tif to have pages of one shape and dtype, got \(4, 4\) uint8 and \(6, 8\) uint8")
    first.save(tmp_path / "c.tif", description="ImageJ=1.54f\nimages=5\nslices=5")
    refused(tmp_path / "c.tif", "c.tif to have the 5 pages that ImageJ names, got 1")


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp"])
def test_animations_are_refused_with_their_count(tmp_path: Path, name: str) -> None:
    first, *rest = frames("RGB")
    first.save(tmp_path / name, save_all=True, append_images=rest)
    refused(tmp_path, f"{name} to be one picture, got 4 frames. Store its frames")


def test_the_main_picture_of_a_camera(tmp_path: Path) -> None:
    first, *rest = frames("RGB")
    first.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=rest)
    assert len(load(tmp_path)) == 1


@pytest.mark.parametrize(("channels", "kind"), [(1, 0), (3, 2), (4, 6)])
def test_16_bits_of_png_are_kept(tmp_path: Path, channels: int, kind: int) -> None:
    (tmp_path / "a.png").write_bytes(png(channels, kind))
    image = load(tmp_path / "a.png").tensor
    assert image.dtype == torch.float32
    expected = torch.tensor(WORDS[..., : min(channels, 3)].astype(np.float64)).permute(2, 0, 1) / 32767.5 - 1
    torch.testing.assert_close(image[0].double(), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("channels", [None, 3])
def test_16_bits_of_tiff_are_kept(tmp_path: Path, order: str, channels: int | None) -> None:
    array = np.ascontiguousarray(WORDS[..., :3]) if channels else np.ascontiguousarray(WORDS[..., 0])
    (tmp_path / "a.tif").write_bytes(tiff(array, order))
    expected = torch.tensor(array.astype(np.float64)).reshape(6, 8, -1).permute(2, 0, 1) / 32767.5 - 1
    torch.testing.assert_close(load(tmp_path / "a.tif").tensor[0].double(), expected, rtol=0, atol=1e-7)
    Image.fromarray(BYTES[0]).save(tmp_path / "b.png")
    both = load(tmp_path)[:]
    torch.testing.assert_close(both[1, 0], torch.tensor(BYTES[0]) / 127.5 - 1)


def test_16_bits_of_a_stack_in_colours(tmp_path: Path) -> None:
    """A TIFF of three pages: the header of each leads to the next, its strips behind it."""
    pages = [np.ascontiguousarray(np.roll(WORDS[..., :3], k, 0)) for k in range(3)]
    content, link = bytearray(), 0
    for page in pages:
        start = len(content)
        part = bytearray(tiff(page, "<", base=start))
        if start:
            content[link : link + 4] = struct.pack("<I", start + 8)
        link = start + 8 + 2 + 12 * struct.unpack_from("<H", part, 8)[0]
        content += part
    (tmp_path / "a.tif").write_bytes(content)
    expected = torch.tensor(np.stack(pages).astype(np.float64)).permute(0, 3, 1, 2) / 32767.5 - 1
    torch.testing.assert_close(load(tmp_path / "a.tif").tensor.double(), expected, rtol=0, atol=1e-7)


def test_what_has_other_bits_is_refused(tmp_path: Path) -> None:
    for name, content in {
        "la.png": png(2, 4),
        "planes.tif": tiff(np.ascontiguousarray(WORDS[..., :3]), "<", t284=2),
        "signed.tif": tiff(BYTES[0], "<", t339=2),
        "deep.ppm": b"P6 8 6 65535\n" + WORDS[..., :3].astype(">u2").tobytes(),
    }.items():
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, f"{name} to have 8 or 16 bits per channel, or floats, got pillow modes", TypeError)
    (tmp_path / "white.tif").write_bytes(tiff(WORDS[..., 0], "<", t262=0))
    expected = (65535 - torch.tensor(WORDS[..., 0].astype(np.float32))) / 32767.5 - 1
    torch.testing.assert_close(load(tmp_path / "white.tif")[0][0], expected, rtol=0, atol=1e-6)


def test_floats_of_tiff_are_in_data_units(tmp_path: Path) -> None:
    values = GENERATOR.uniform(-1, 1, (2, 6, 8)).astype(np.float32)
    pages = [Image.fromarray(page) for page in values]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    assert torch.equal(load(tmp_path)[:], torch.tensor(values)[:, None])
    Image.fromarray(255 * values[0] + 300).save(tmp_path / "b.tif")
    refused(tmp_path, r"to hold floats in \[-1, 1\], got values from .* Scale the values")


def test_links_lead_to_a_file_once(tmp_path: Path) -> None:
    real = tmp_path / "set" / "b"
    real.mkdir(parents=True)
    for index, page in enumerate(frames()):
        page.save(real / f"{index}.png")
    (tmp_path / "set" / "z.png").symlink_to(real / "0.png")
    os.link(real / "1.png", tmp_path / "set" / "hard.png")
    (tmp_path / "set" / "c").symlink_to(real)
    (real / "loop").symlink_to(tmp_path / "set")
    (tmp_path / "far").symlink_to(tmp_path / "set")
    for folder in (tmp_path / "set", tmp_path / "far", tmp_path / "set" / "c"):
        assert sorted(load(folder).tensor.flatten(1).tolist()) == sorted(BYTES.reshape(4, -1).tolist())
    (real / "gone.png").symlink_to(tmp_path / "nowhere")
    refused(tmp_path / "set", "gone.png to be a picture, got .*No such file")
    (real / "gone.png").unlink()
    (real / "self.png").symlink_to(real / "self.png")
    refused(tmp_path / "set", "self.png")


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"b\xe4ume")
    folder.mkdir()
    for index, page in enumerate(frames()):
        page.save(folder / os.fsdecode(b"%d\xfc.png" % index))
    assert torch.equal(load(folder).tensor, torch.tensor(BYTES)[:, None])
    (folder / os.fsdecode(b"\xff.png")).write_bytes(b"no")
    refused(folder, "to be a picture")


def test_a_damaged_tiff_is_one_error_and_nothing_else(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.tif"
    frames()[0].save(path, compression="tiff_lzw")
    content = bytearray(path.read_bytes())
    content[8:20] = bytes(12)  # the pixels
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.tif to be a picture"):
        load(path)
    assert capfd.readouterr() == ("", "")
