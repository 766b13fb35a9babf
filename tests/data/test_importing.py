"""Observations in the formats of others: read into one file, and written back alike."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from emfast.cli import main
from emfast.commands.restored import write_files
from emfast.data import load, load_observations
from emfast.data.importing import import_observations
from emfast.data.origin import Range, read_origin
from emfast.data.raw import read_raw, write_raw

SHAPE = (5, 7)


def values(dtype, shape=SHAPE, seed=0):
    generator = np.random.default_rng(seed)
    return (generator.random(shape) * (200 if np.dtype(dtype).kind in "iu" else 1.0)).astype(dtype)


def save(path: Path, array: np.ndarray) -> None:
    """Writes an array by the library that users have for it."""
    kind = path.suffix
    if kind == ".tif":
        tifffile = pytest.importorskip("tifffile", reason="tifffile is not installed")
        colours = array.ndim == 3 and array.shape[-1] == 3
        options = {"photometric": "rgb" if colours else "minisblack", "resolution": (10, 20)}
        tifffile.imwrite(path, array, description="exposure 3 ms", metadata=None, **options)
    elif kind == ".fits":
        fits = pytest.importorskip("astropy.io.fits", reason="astropy is not installed")
        fits.writeto(path, array, fits.Header([("TELESCOP", "mine")]))
    elif kind == ".npy":
        np.save(path, array)
    elif kind == ".npz":
        np.savez(path, frames=array)
    elif kind == ".h5":
        with pytest.importorskip("h5py", reason="h5py is not installed").File(path, "w") as file:
            file["a/frames"] = array
    elif array.dtype == np.uint16 and array.ndim == 3:
        layout = {"kind": "PNG", "dtype": "uint16", "shape": array.shape, "last": True, "images": 1}
        write_raw(path, array.transpose(2, 0, 1)[None].astype(np.float64), layout)
    else:
        Image.fromarray(array).save(path)


def read(path: Path) -> np.ndarray:
    """Reads it by the same library."""
    if path.suffix == ".tif":
        return importlib.import_module("tifffile").imread(path)
    if path.suffix == ".fits":
        return importlib.import_module("astropy.io.fits").getdata(path)
    if path.suffix == ".npz":
        return np.load(path)["frames"]
    if path.suffix == ".h5":
        with importlib.import_module("h5py").File(path) as file:
            return file["a/frames"][:]
    if path.suffix == ".npy":
        return np.load(path)
    raw = read_raw(path)
    return raw.values[0, 0] if raw.values.shape[1] == 1 else raw.values[0].transpose(1, 2, 0)


CASES = [
    *((".tif", dtype, SHAPE) for dtype in ("uint8", "uint16", "int16", "float32", "float64")),
    (".tif", "uint16", (3, *SHAPE)),  # pages
    (".tif", "uint8", (*SHAPE, 3)),
    (".tif", "uint16", (*SHAPE, 3)),
    (".fits", "float32", SHAPE),
    (".fits", "uint16", (4, *SHAPE)),
    (".fits", "int32", SHAPE),
    (".png", "uint8", SHAPE),
    (".png", "uint16", SHAPE),
    (".png", "uint8", (*SHAPE, 3)),
    (".png", "uint16", (*SHAPE, 3)),
    (".npy", "float32", SHAPE),
    (".npz", "uint16", (6, *SHAPE)),
    (".npz", "float32", (2, *SHAPE, 3)),
    (".h5", "float64", (2, 2, *SHAPE)),
]


@pytest.mark.parametrize(("suffix", "dtype", "shape"), CASES)
def test_what_was_read_is_written_alike(tmp_path, suffix, dtype, shape):
    (tmp_path / "raw/night").mkdir(parents=True)
    arrays = {f"raw/night/{name}{suffix}": values(dtype, shape, seed) for seed, name in enumerate("ab")}
    for name, array in arrays.items():
        save(tmp_path / name, array)
    found = import_observations(str(tmp_path / "raw"))
    assert found.y.shape[2:] == SHAPE
    assert found.y.abs().max() < 1.2
    assert bool(found.mask.all())
    write_files(tmp_path / "out", found.origin, {"images": found.y})
    for name, array in arrays.items():
        back = read(tmp_path / "out/images" / Path(name).name)
        assert back.dtype.newbyteorder("=") == array.dtype
        assert back.shape == array.shape
        np.testing.assert_allclose(back, array, atol=0 if array.dtype.kind in "iu" else 1e-6)


def test_what_a_file_says_beside_its_pixels_is_kept(tmp_path):
    save(tmp_path / "a.tif", values("uint16"))
    save(tmp_path / "b.fits", values("uint16"))
    found = import_observations(str(tmp_path), range=Range(0, 300))
    write_files(tmp_path / "out", found.origin, {"images": found.y})
    with importlib.import_module("tifffile").TiffFile(tmp_path / "out/images/a.tif") as file:
        assert file.pages[0].description == "exposure 3 ms"
        assert file.pages[0].tags["YResolution"].value == (20, 1)
    assert importlib.import_module("astropy.io.fits").getheader(tmp_path / "out/images/b.fits")["TELESCOP"] == "mine"


def test_missing_pixels(tmp_path):
    for folder in ("raw", "masks"):
        (tmp_path / folder).mkdir()
    masks = [values("float32", seed=seed) > 0.3 for seed in (5, 6)]
    for index, mask in enumerate(masks):
        array = values("float32", seed=index)
        array[0, 0], array[1, 1] = np.nan, -99
        np.save(tmp_path / f"raw/a{index}.npy", array)
        Image.fromarray((mask * 255).astype(np.uint8)).save(tmp_path / f"masks/a{index}_mask.png")
        mask[0, 0] = mask[1, 1] = False
    found = import_observations(str(tmp_path / "raw"), masks=str(tmp_path / "masks"), missing=-99)
    assert torch.equal(found.mask[:, 0], torch.from_numpy(np.stack(masks)).to(torch.uint8))
    assert found.origin.range.low >= 0  # neither NaN nor -99 have a say
    assert bool((found.y[found.mask == 0] == 0).all())


@pytest.mark.parametrize("suffix", ["h5", "npz", "safetensors"])
def test_the_command_and_its_file(tmp_path, capsys, suffix):
    if suffix == "h5":
        pytest.importorskip("h5py", reason="h5py is not installed")
    for index in range(3):
        array = values("uint8", seed=index)
        array[0, index] = 7
        Image.fromarray(array).save(tmp_path / f"a{index}.png")
    (tmp_path / "notes.md").write_text("")
    output = str(tmp_path / f"obs.{suffix}")
    files = [str(tmp_path / f"a{index}.png") for index in range(3)]
    (tmp_path / "list.txt").write_text("\n".join(files))
    argv = ["import", *files, "--missing", "7", "--range=0,200", "--output", output]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("3 images of 5 x 7", "0 ... 200 for [-1, 1]", "Observed:", output))
    y, parameters = load_observations(output)
    assert y.shape == (3, 1, *SHAPE)
    assert parameters.keys() == {"mask"}
    assert read_origin(output).range == (0, 200)
    assert [file["path"] for file in read_origin(output).files] == ["a0.png", "a1.png", "a2.png"]
    # Clean images for the same run are imported in the same range.
    clean = str(tmp_path / "clean.npz")
    assert main(["import", str(tmp_path / "list.txt"), f"--range={output}", "--output", clean]) == 0
    assert load(clean).shape == (1, *SHAPE)


def wrong(folder: Path, name: str) -> list[str]:
    """Makes a mistake in a folder of good observations; returns the arguments that go with it."""
    if name == "empty":
        return [str(folder / "nothing")]
    if name == "size":
        np.save(folder / "c.npy", values("float32", (6, 7)))
    if name == "damaged":
        (folder / "c.tif").write_bytes(b"II*\0" + bytes(20))
    if name == "constant":
        return [str(folder / "../constant.npy")]
    if name == "unseen":
        np.save(folder / "c.npy", np.full(SHAPE, np.nan))
    if name in ("masks", "grey"):
        (folder / "../masks").mkdir()
        mask = values("uint8") if name == "grey" else np.ones(SHAPE, np.uint8)
        for each in "a" if name == "masks" else "ab":
            np.save(folder / f"../masks/{each}.npy", mask)
        return [str(folder), "--masks", str(folder / "../masks")]
    if name == "kinds":
        np.save(folder / "c.npy", values("uint8"))
    if name == "again":
        assert main(["import", str(folder), "--output", str(folder / "before.npz")]) == 0
        return [str(folder / "before.npz")]
    if name.startswith("--"):
        return [str(folder), name]
    return [str(folder)]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("empty", ["nothing", "to exist"]),
        ("size", ["c.npy", "5 x 7", "6 x 7"]),
        ("damaged", ["c.tif", "damaged"]),
        ("constant", ["several values", "3 everywhere"]),
        ("unseen", ["c.npy", "observed pixel"]),
        ("masks", ["masks", "one for b.npy"]),
        ("grey", ["a.npy", "two values"]),
        ("kinds", ["c.npy", "float values", "uint8"]),
        ("again", ["before.npz", "imported before"]),
        ("--range=5,1", ["LOW < HIGH", "5,1"]),
        ("--range=low", ["LOW,HIGH", "low"]),
        ("--range=5,9", ["5 ... 9", "most of the values", "from 0"]),
        ("--output=obs.tif", [".h5", "obs.tif"]),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(tmp_path, capsys, name, words):
    (tmp_path / "raw").mkdir()
    for index, each in enumerate("ab"):
        np.save(tmp_path / f"raw/{each}.npy", values("float32", seed=index))
    np.save(tmp_path / "constant.npy", np.full((2, *SHAPE), 3.0))
    argv = wrong(tmp_path / "raw", name)
    capsys.readouterr()
    output = [] if "output" in name else ["--output", str(tmp_path / "obs.npz")]
    assert main(["import", *argv, *output]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.strip().splitlines()) == 1
    assert all(word in err for word in words), (words, err)
    assert not (tmp_path / "obs.npz").exists()


def test_what_was_imported_is_no_observation_of_the_next_import(tmp_path, capsys):
    (tmp_path / "raw").mkdir()
    np.save(tmp_path / "raw/a.npy", values("float32"))
    argv = ["import", str(tmp_path / "raw"), "--output", str(tmp_path / "raw/obs.npz")]
    for left_out in ("", "; 1 other files left out"):
        assert main(argv) == 0
        assert f"1 images of 5 x 7 (npy float32){left_out}\n" in capsys.readouterr().out


def test_the_arrays_that_were_not_read_are_named(tmp_path, capsys):
    output, arrays = ["--output", str(tmp_path / "obs.npz")], {"y": values("float32"), "mask": np.eye(*SHAPE)}
    np.savez(tmp_path / "a.npz", **arrays, x=values("float32", seed=1), kernel=np.eye(3))
    np.save(tmp_path / "masks.npy", np.eye(*SHAPE))
    for words, line in [
        (["a.npz"], "y and mask read, kernel, x not; FILE:KEY reads another"),
        (["a.npz:x"], "x and mask read, kernel, y not; FILE:KEY reads another"),
        (["a.npz", "--masks", str(tmp_path / "masks.npy")], "y read, kernel, mask, x not; FILE:KEY reads another"),
    ]:
        assert main(["import", str(tmp_path / words[0]), *words[1:], *output]) == 0
        assert f"\nArrays:   {line}\n" in capsys.readouterr().out
    np.savez(tmp_path / "a.npz", **arrays)
    assert main(["import", str(tmp_path / "a.npz"), *output]) == 0
    assert "Arrays:" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("suffix", "shape"),
    [
        *((suffix, (5, *SHAPE)) for suffix in (".tif", ".fits", ".npz", ".h5")),
        (".npy", (3, *SHAPE)),
        (".npy", (*SHAPE, 4)),
    ],
)
def test_planes_are_images_or_bands(tmp_path, capsys, suffix, shape):
    (tmp_path / "raw").mkdir()
    array, count = values("float32", shape), min(shape)
    save(tmp_path / f"raw/a{suffix}", array)
    argv = ["import", str(tmp_path / "raw"), "--output", str(tmp_path / "obs.npz")]
    assert main([*argv, "--planes", "bands"]) == 0
    assert f"1 images of 5 x 7 in {count} channels" in capsys.readouterr().out
    found = import_observations(str(tmp_path / "raw"), planes="bands")
    assert found.y.shape == (1, count, *SHAPE)
    write_files(tmp_path / "out", found.origin, {"images": found.y})
    np.testing.assert_allclose(read(tmp_path / f"out/images/a{suffix}"), array, atol=1e-6)
    if suffix == ".npy":  # it may be in colours
        assert main(argv) == 2
        assert "may be one image with its channels. Say --planes bands if it is" in capsys.readouterr().err
    else:
        assert main(argv) == 0
        assert "5 images of 5 x 7" in (out := capsys.readouterr().out)
        assert "each plane of a file is an image, unless you say --planes bands\n" in out
    if shape[1:] == SHAPE:
        assert import_observations(str(tmp_path / "raw"), planes="images").y.shape == (count, 1, *SHAPE)


def test_what_a_tiff_says_of_its_axes(tmp_path):
    tifffile = pytest.importorskip("tifffile", reason="tifffile is not installed")
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, values("uint16", (4, *SHAPE)), photometric="minisblack", metadata={"axes": "CYX"})
    for planes, shape in (("auto", (1, 4)), ("bands", (1, 4)), ("images", (4, 1))):
        assert read_raw(path, None, planes).values.shape == (*shape, *SHAPE)
    tifffile.imwrite(path, values("uint16", (4, 2, *SHAPE)), photometric="minisblack", metadata={"axes": "CZYX"})
    for planes in ("auto", "bands"):
        with pytest.raises(ValueError, match=r"channels beside its rows, got CZYX\. Store it with the axes"):
            read_raw(path, None, planes)
    assert read_raw(path, None, "images").values.shape == (8, 1, *SHAPE)


def test_masks_of_bands(tmp_path):
    y, mask = values("float32", (3, *SHAPE)), np.ones((3, *SHAPE), np.uint8)
    mask[2, 1, 1] = 0
    for last in (False, True):
        arrays = {key: np.moveaxis(each, 0, -1) if last else each for key, each in (("y", y), ("mask", mask))}
        np.savez(tmp_path / "obs.npz", **arrays)
        np.save(tmp_path / "mask.npy", arrays["mask"])
        for masks in (None, str(tmp_path / "mask.npy")):
            found = import_observations(str(tmp_path / "obs.npz"), masks=masks, planes="bands")
            assert found.y.shape == (1, 3, *SHAPE)
            assert found.mask.flatten().argmin() == 8
            assert found.mask.sum() == 34


def test_a_source_is_not_overwritten(tmp_path, capsys):
    path = tmp_path / "mine.npz"
    np.savez(path, frames=values("float32"))
    before = path.read_bytes()
    for source in (str(path), f"{path}:frames"):
        assert main(["import", source, "--output", str(path)]) == 2
        assert "another file than the sources" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_masks_of_one_name_are_told_apart_by_their_folders(tmp_path):
    for number, folder in enumerate("pq"):
        for kind in ("raw", "masks"):
            (tmp_path / kind / folder).mkdir(parents=True)
        np.save(tmp_path / "raw" / folder / "1.npy", values("float32", seed=number))
        np.save(tmp_path / "masks" / folder / "1.npy", np.arange(35).reshape(SHAPE) % 35 != number)
    found = import_observations(str(tmp_path / "raw"), masks=str(tmp_path / "masks"))
    assert [int(mask.flatten().argmin()) for mask in found.mask] == [0, 1]
    assert found.mask.sum() == 2 * 34


def test_a_mask_counts_in_all_its_channels_and_by_its_key(tmp_path):
    np.save(tmp_path / "y.npy", values("float32", (4, *SHAPE))[None])
    masks = np.ones((1, 4, *SHAPE), np.uint8)
    masks[0, 3, 2, 1] = 0
    np.savez(tmp_path / "masks.npz", images=values("float32"), bands=masks)
    found = import_observations(str(tmp_path / "y.npy"), masks=f"{tmp_path / 'masks.npz'}:bands")
    assert int(found.mask.sum()) == 34
    assert found.mask[0, 0, 2, 1] == 0


def test_no_mask_stands_in_for_another(tmp_path):
    """Names that several observations share tell nothing; nor do capitals."""
    for folder in ("raw/p1", "raw/p2", "masks/p1"):
        (tmp_path / folder).mkdir(parents=True)
    for folder in ("p1", "p2"):
        np.save(tmp_path / f"raw/{folder}/s1.npy", np.ones((4, 4), np.float32))
    np.save(tmp_path / "masks/p1/s1_mask.npy", np.eye(4))
    np.save(tmp_path / "masks/p1/other.npy", np.eye(4))
    with pytest.raises(ValueError, match=r"to hold one for s1\.npy, got none"):
        import_observations(str(tmp_path / "raw"), masks=str(tmp_path / "masks"))
    np.save(tmp_path / "raw/p1/S1.npy", np.ones((4, 4), np.float32))
    with pytest.raises(ValueError, match="two of one name"):
        import_observations(str(tmp_path / "raw/p1"), masks=str(tmp_path / "masks/p1"))


def test_missing_values_in_files_of_several_precisions(tmp_path):
    values = np.linspace(0, 1, 16).reshape(4, 4)
    values[0, 0] = -99.9
    for kind in (np.float32, np.float64):
        np.save(tmp_path / f"{kind.__name__}.npy", values.astype(kind))
    found = import_observations(str(tmp_path), missing=-99.9, range=Range(0, 1))
    assert found.mask[:, 0, 0, 0].tolist() == [0, 0]


def test_what_is_no_number_in_a_mask_shows_nothing(tmp_path):
    np.save(tmp_path / "y.npy", np.random.default_rng(0).random((4, 4)))
    mask = np.ones((4, 4))
    mask[1, 1] = np.nan
    np.save(tmp_path / "mask.npy", mask)
    found = import_observations(str(tmp_path / "y.npy"), masks=str(tmp_path / "mask.npy"))
    assert found.mask[0, 0, 1, 1] == 0


def test_channels_and_kinds_of_tiffs(tmp_path):
    """A fourth channel is transparency only where the file says so; what was a negative stays one."""
    tifffile = pytest.importorskip("tifffile", reason="tifffile is not installed")
    pixels = values("uint8", (*SHAPE, 4))
    for name, extra, channels in (("near infrared", "unspecified", 4), ("transparent", "unassalpha", 3)):
        tifffile.imwrite(tmp_path / f"{name}.tif", pixels, photometric="rgb", extrasamples=[extra])
        raw = read_raw(tmp_path / f"{name}.tif", None)
        assert raw.values.shape == (1, channels, *SHAPE)
    layout = read_raw(tmp_path / "near infrared.tif", None).layout
    write_raw(tmp_path / "again.tif", np.moveaxis(pixels, -1, 0)[None].astype(float), layout)
    assert np.array_equal(tifffile.imread(tmp_path / "again.tif"), pixels)
    tifffile.imwrite(tmp_path / "negative.tif", pixels[..., 0], photometric="miniswhite")
    raw = read_raw(tmp_path / "negative.tif", None)
    write_raw(tmp_path / "out.tif", raw.values.astype(float), raw.layout)
    for name in ("negative", "out"):
        assert np.array_equal(np.asarray(Image.open(tmp_path / f"{name}.tif")), 255 - pixels[..., 0])
    tifffile.imwrite(tmp_path / "inks.tif", pixels, photometric="separated")
    with tifffile.TiffWriter(tmp_path / "palettes.tif") as file:
        for colours in np.arange(2 * 3 * 256, dtype="u2").reshape(2, 3, 256):
            file.write(pixels[..., 0], photometric="palette", colormap=colours, metadata=None)
    for name, words in (("inks", "got inks"), ("palettes", "got numbers of colours")):
        with pytest.raises(ValueError, match=f"{name}.tif to hold intensities, {words}"):
            read_raw(tmp_path / f"{name}.tif", None)


def test_a_palette_stands_for_colours(tmp_path):
    """Whatever the format is; what is restored has too many colours for a palette."""
    pytest.importorskip("tifffile", reason="tifffile is not installed")
    picture = Image.fromarray(values("uint8", (*SHAPE, 3))).quantize(9)
    for name in ("a.png", "a.tif"):
        picture.save(tmp_path / name)
    png, tiff = read_raw(tmp_path / "a.png"), read_raw(tmp_path / "a.tif")
    assert np.array_equal(tiff.values, png.values)
    assert tiff.values.shape == (1, 3, *SHAPE)
    write_raw(tmp_path / "b.tif", tiff.values.astype(float), tiff.layout)
    assert np.array_equal(read_raw(tmp_path / "b.tif").values, png.values)
    picture.save(tmp_path / "pages.tif", save_all=True, append_images=[picture.rotate(180)])
    assert np.array_equal(read_raw(tmp_path / "pages.tif").values[1], png.values[0, :, ::-1, ::-1])


def test_true_and_false_are_rounded(tmp_path):
    np.save(tmp_path / "a.npy", values("float32") > 0.5)
    layout = read_raw(tmp_path / "a.npy", None).layout
    restored = values("float64")[None, None]
    write_raw(tmp_path / "b.npy", restored, layout)
    assert np.array_equal(np.load(tmp_path / "b.npy"), restored[0, 0] >= 0.5)
