"""Photos as strangers bring them: each kind of input that troubled somebody, and what comes out."""

from __future__ import annotations

import os
import struct
import unicodedata
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cache import images, walk
from cache.claims import claim
from cache.images import check_image, find_white, read_image, shows, survey
from cache.index import read_index
from cache.photos import Photo, find_photos
from cache.predictions import write_sample
from cache.store.artefact import write_bytes
from cache.store.errors import InputError
from cache.walk import walk as walk_folder
from tests.conftest import Project

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 255, (24, 32, 3), np.uint8)


def photo(path: Path, pixels: np.ndarray = NOISE, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def exif(orientation: int) -> bytes:
    """EXIF with a good orientation and a resolution of -1/0, which no parser of rationals takes."""
    entries = struct.pack("<HHIHH", 0x112, 3, 1, orientation, 0) + struct.pack(
        "<HHII", 0x11A, 10, 1, 38
    )
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + struct.pack("<Iii", 0, -1, 0)


# Metadata


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_broken_rational_leaves_the_orientation_alone(tmp_path: Path, suffix: str) -> None:
    top_light = np.zeros((24, 32, 3), np.uint8)
    top_light[:8] = 220
    turned = np.rot90(top_light)  # as the sensor of a phone held upright sees it
    path = photo(tmp_path / f"a.{suffix}", np.ascontiguousarray(turned), exif=exif(6))
    found = read_image(path)
    assert found.shape == (24, 32, 3)
    assert found[:6].mean() > 150 > 60 > found[12:].mean()


def test_a_broken_rational_of_a_tiff_too(tmp_path: Path) -> None:
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[0] = 200
    entries = [
        (256, 3, 1, 6), (257, 3, 1, 4), (258, 3, 3, 180), (259, 3, 1, 1), (262, 3, 1, 2),
        (273, 4, 1, 200), (274, 3, 1, 6), (277, 3, 1, 3), (278, 3, 1, 4), (279, 4, 1, 72),
        (282, 10, 1, 190),
    ]  # fmt: skip
    head = b"II*\0" + struct.pack("<IH", 8, len(entries))
    head += b"".join(struct.pack("<HHII", *entry) for entry in entries)
    content = head.ljust(180, b"\0") + struct.pack("<HHH", 8, 8, 8)
    content = content.ljust(190, b"\0") + struct.pack("<ii", -1, 0)
    path = tmp_path / "a.tif"
    path.write_bytes(content.ljust(200, b"\0") + pixels.tobytes())
    assert np.array_equal(read_image(path), np.rot90(pixels, k=-1))


@pytest.mark.parametrize("error", [struct.error("odd"), KeyError(7), RecursionError(), EOFError()])
def test_whatever_a_decoder_raises_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    path = photo(tmp_path / "a.png")
    monkeypatch.setattr(images.Image.Image, "convert", fail)
    with pytest.raises(InputError, match=r"a\.png cannot be decoded"):
        read_image(path)
    monkeypatch.setattr(
        images.Image.Image, "convert", lambda *_: (_ for _ in ()).throw(MemoryError)
    )
    with pytest.raises(MemoryError):
        read_image(path)


def test_a_bomb_is_refused_with_the_limit_and_a_way_to_raise_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = photo(tmp_path / "a.png", np.zeros((2000, 3000), np.uint8))
    monkeypatch.setattr(images, "MEGAPIXELS", 5)
    with pytest.raises(InputError, match=r"at most 5 megapixels.*3000 x 2000.*MEGAPIXELS=6"):
        read_image(path)
    monkeypatch.setenv("EIGENSEG_MEGAPIXELS", "6")
    assert read_image(path).shape == (2000, 3000, 3)


# More than 8 bits


def png16(path: Path, values: np.ndarray, colour: int) -> Path:
    """A PNG of 16 bits a channel, its rows filtered by `Up`."""
    rows = values.astype(">u2").reshape(len(values), -1).view(np.uint8)
    above = np.concatenate([np.zeros_like(rows[:1]), rows[:-1]])
    raw = b"".join(b"\2" + row.tobytes() for row in rows - above)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw))
        + chunk(b"IEND", b"")
    )  # fmt: skip
    return path


def tiff16(path: Path, values: np.ndarray, order: str) -> Path:
    """An uncompressed TIFF of 16 bits a channel, RGB, in either order of bytes."""
    height, width, bands = values.shape
    entries = [
        (256, 3, width), (257, 3, height), (258, 3, 0), (259, 3, 1), (262, 3, 2), (273, 4, 200),
        (277, 3, bands), (278, 3, height), (279, 4, values.size * 2), (284, 3, 1),
    ]  # fmt: skip
    table = b""
    for tag, kind, value in entries:
        if tag == 258:
            table += struct.pack(order + "HHII", tag, kind, bands, 180)
        elif kind == 3:
            table += struct.pack(order + "HHIHH", tag, kind, 1, value, 0)
        else:
            table += struct.pack(order + "HHII", tag, kind, 1, value)
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(entries))
    content = (start + table).ljust(180, b"\0") + struct.pack(order + "H" * bands, *[16] * bands)
    path.write_bytes(content.ljust(200, b"\0") + values.astype(order + "u2").tobytes())
    return path


def test_all_channels_keep_their_16_bits(tmp_path: Path) -> None:
    for colour, bands in ((0, 1), (2, 3), (4, 2), (6, 4)):
        values = RNG.integers(0, 4096, (10, 14, bands), dtype=np.uint16)
        path = png16(tmp_path / f"{colour}.png", values, colour)
        kept = values[..., :1] if bands < 3 else values[..., :3]
        expected = np.broadcast_to(np.rint(kept * (255 / 4095)), (10, 14, 3))
        assert np.array_equal(read_image(path, white=4095), expected), colour
        assert 4000 < (check_image(path).peak or 0) < 4096
    for order in "<>":
        values = RNG.integers(0, 4096, (10, 14, 3), dtype=np.uint16)
        path = tiff16(tmp_path / "a.tif", values, order)
        assert np.array_equal(read_image(path, white=4095), np.rint(values * (255 / 4095))), order


def test_a_pgm_names_its_own_white(tmp_path: Path) -> None:
    path = tmp_path / "a.pgm"
    path.write_bytes(b"P5\n3 1\n4095\n" + np.array([0, 2048, 4095], ">u2").tobytes())
    assert check_image(path).peak is None
    assert read_image(path)[0, :, 0].tolist() == [0, 128, 255]


def test_one_range_for_a_data_set_told_and_settable(project: Project) -> None:
    scene = np.linspace(0, 255, 40 * 60).reshape(40, 60).astype(np.uint16)
    for i, gain in enumerate((16, 14, 12)):  # one scene, 12 bits
        photo(Path(f"deep/{i}.{'tif' if i % 2 else 'png'}"), scene * gain)
    photo(Path("deep/eight.png"))
    project.set("datasets.tiny", {"root": "deep", "train": "all", "eval": "all"})
    result = project.run("prepare")
    assert "3 files of more than 8 bits are read with white = 4095" in result.output
    rows = read_index("data/index.csv")
    assert [row.white for row in rows] == [4095, 4095, 4095, None]
    bright = [read_image(row.path, white=row.white).max() for row in rows[:3]]
    assert bright == [254, 222, 191]  # none black, as bright as they were taken
    project.set("datasets.tiny.white", 65535)
    assert "Nearly black, as of another range: deep/0.png" in project.run("prepare").output
    assert read_index("data/index.csv")[0].white == 65535
    assert survey([row.path for row in rows])[0] == [Path(row.path) for row in rows[:3]]
    assert find_white([Path("deep/0.png")]) == 4095


def test_floating_point_needs_a_white(project: Project) -> None:
    photo(Path("deep/a.tif"), np.linspace(0, 1, 1200, dtype=np.float32).reshape(30, 40))
    project.set("datasets.tiny", {"root": "deep", "train": "all", "eval": "all"})
    project.fails("prepare", "a.tif", "floating point from 0 to 1", "`datasets.<name>.white`")
    project.set("datasets.tiny.white", 1.0)
    project.ok("prepare")
    assert read_image("deep/a.tif", white=1.0).max() == 255
    with pytest.raises(InputError, match="whose black and white are not known"):
        read_image("deep/a.tif")


# Which files are photos


def test_what_counts_as_a_photo_and_what_is_said_of_the_rest(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    for name in ("a.jpg", "trip/c.jpg", ".ipynb_checkpoints/a.jpg", ".Trash-1000/d.jpg",
                 "@eaDir/a.jpg", "._a.jpg"):  # fmt: skip
        photo(root / name)
    photo(tmp_path / "elsewhere/linked.jpg")
    (root / "linked").symlink_to("../elsewhere", target_is_directory=True)
    (root / "again").symlink_to("trip", target_is_directory=True)
    (root / "loop").symlink_to(".", target_is_directory=True)
    (root / "self").symlink_to("self")
    (tmp_path / "elsewhere/back").symlink_to("../photos", target_is_directory=True)
    (root / "gone.jpg").symlink_to("nowhere.jpg")
    for name in ("g.avif", "f.gif", "notes.txt", ".DS_Store"):
        (root / name).write_bytes(b"no image at all")
    found = walk_folder(root)
    names = [path.relative_to(root).as_posix() for path in found.files]
    assert names == ["a.jpg", "linked/linked.jpg", "trip/c.jpg"]
    for text in (
        "hidden folders or folders of a system: 3 (.Trash-1000, .ipynb_checkpoints, @eaDir)",
        "hidden files: 1 (._a.jpg)",
        "links that lead nowhere: 2 (gone.jpg, self)",
        "links to folders that are read anyway: 3 (again, loop, linked/back)",
        "1 .gif, 1 .txt",
    ):
        assert text in found.text
    assert ".DS_Store" not in found.text and "\n" not in found.text
    assert [p.name for p in find_photos([root, root / "a.jpg"])[0]] == [
        "a", "linked/linked", "trip/c",
    ]  # fmt: skip


def test_a_locked_folder_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo(tmp_path / "a.jpg")
    photo(tmp_path / "locked/b.jpg")
    scan = os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(walk.os, "scandir", refuse)
    found = walk_folder(tmp_path)
    assert [path.name for path in found.files] == ["a.jpg"]
    assert "folders that cannot be opened: 1 (locked: Permission denied)" in found.text


def test_avif_is_read_and_heic_where_its_package_is(tmp_path: Path) -> None:
    if ".avif" in walk.SUFFIXES:
        photo(tmp_path / "a.avif")
        assert walk_folder(tmp_path).files == [tmp_path / "a.avif"]
        assert read_image(tmp_path / "a.avif").shape == (24, 32, 3)
    (tmp_path / "b.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    if images.HEIC:
        with pytest.raises(InputError, match=r"b\.heic cannot be decoded"):
            read_image(tmp_path / "b.heic")
    else:
        assert "pip install pillow-heif" in walk_folder(tmp_path).text
        with pytest.raises(InputError, match="pip install pillow-heif"):
            read_image(tmp_path / "b.heic")


def test_photos_directly_in_images_are_one_split(project: Project) -> None:
    photo(Path("flat/images/a.jpg"))
    photo(Path("flat/labels/a.png"), np.tile(np.arange(2, dtype=np.uint8), (24, 16)))
    Path("flat/classes.txt").write_text("sky\nground\n")
    project.set("datasets.tiny", {"root": "flat", "train": "train", "eval": "val"})
    project.fails("prepare", "flat/images holds photos", "to `all`", "flat/images/<split>/")
    project.set("datasets.tiny", {"root": "flat", "train": "all", "eval": "all"})
    assert "all: 1 images, 1 with labels" in project.run("prepare").output


def test_of_several_pages_the_first_is_read_and_told(project: Project) -> None:
    pages = [Image.fromarray(np.full((24, 32, 3), value, np.uint8)) for value in (10, 90, 200)]
    Path("pages").mkdir()
    for name in ("a.tif", "b.webp", "c.png"):
        pages[0].save(f"pages/{name}", save_all=True, append_images=pages[1:])
        assert abs(int(read_image(f"pages/{name}").max()) - 10) < 8
    project.set("datasets.tiny", {"root": "pages", "train": "all", "eval": "all"})
    text = "only the first page or frame is read of pages/a.tif, pages/b.webp, pages/c.png"
    assert text in project.run("prepare").output


def test_unlabelled_photos_may_share_a_stem(project: Project) -> None:
    for name in ("x.jpg", "x.png", "x.jpg.png", "y.jpg"):
        photo(Path("loose") / name)
    project.set("datasets.tiny", {"root": "loose", "train": "all", "eval": "all"})
    project.ok("prepare")
    stems = [row.stem for row in read_index("data/index.csv")]
    assert stems == ["x.jpg", "x.jpg.png", "x.png", "y"]


# Labels


def masks(project: Project, values: tuple[int, ...], classes: int = 2) -> None:
    """Labels of the project that hold these values, in bands."""
    for path in Path("photos/labels").rglob("*.png"):
        bands = np.array(values, np.uint8)[np.arange(96) * len(values) // 96]
        Image.fromarray(np.repeat(bands[:, None], 128, axis=1)).save(path)
    Path("photos/classes.txt").write_text("".join(f"class {i}\n" for i in range(classes)))


def test_masks_of_0_and_255_are_refused_or_mapped(project: Project) -> None:
    masks(project, (0, 255))
    text = project.fails("prepare", "found 0 (class 0) alone", "`datasets.<name>.values: {255: 1}`")
    assert "split val" in text and "split train" not in text
    project.set("datasets.tiny.values", {255: 1})
    project.ok("prepare", "extract", "context", "graph", "train", "segment", "eval")
    mapped = Path("results/per_class.csv").read_text()
    masks(project, (0, 1))
    project.set("datasets.tiny.values", None)
    project.ok("prepare", "eval")
    scores = [line.split(",", 1) for line in Path("results/per_class.csv").read_text().split()]
    assert scores == [line.split(",", 1) for line in mapped.split()]


@pytest.mark.parametrize(
    ("values", "classes", "texts"),
    [
        ((255,), 2, ["found 255 (ignored) on every pixel", "remove their folder"]),
        ((1,), 2, ["found 1 (class 1) alone"]),
        ((1, 2), 2, ["values: {1: 0, 2: 1}`"]),
        ((0, 128, 255), 3, ["values: {0: 0, 128: 1, 255: 2}`"]),
        ((0, 60, 120, 180, 255), 2, ["by nearest neighbour"]),
    ],
)
def test_labels_that_cannot_be_meant_are_refused(
    project: Project, values: tuple[int, ...], classes: int, texts: list[str]
) -> None:
    masks(project, values, classes)
    project.fails("prepare", *texts)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((0, 1, 255), "no label holds class 2 (class 2). 255 is ignored"),
        ((0, 1, 2, 255, 255, 255, 255), "255 (ignored) on 56% of pixels"),
    ],
)
def test_labels_that_may_not_be_meant_are_told(
    project: Project, values: tuple[int, ...], text: str
) -> None:
    masks(project, values, 3)
    result = project.run("prepare")
    assert result.exit_code == 0 and text in result.output, result.output


def test_values_are_for_the_own_layout_and_for_bytes(project: Project) -> None:
    project.set("datasets.tiny.values", {256: 1})
    project.fails("prepare", "datasets.tiny.values")
    project.set("datasets.tiny.values", {255: 1})
    project.set("datasets.tiny.format", "ade20k")
    project.set("datasets.tiny.classes", 150)
    project.fails("prepare", "values is for format folder, found ade20k")


def test_labels_match_as_people_mean_it(project: Project) -> None:
    photos, labels = Path("photos/images/train"), Path("photos/labels/train")
    for old, new in (("000", "été"), ("001", "Sea")):
        (photos / f"{old}.jpg").rename(photos / f"{unicodedata.normalize('NFD', new)}.jpg")
        name = unicodedata.normalize("NFC", new).replace("Sea", "sea")
        (labels / f"{old}.png").rename(labels / f"{name}.PNG")
    (labels / "002.png").rename(labels / "002.PNG")
    (labels / "stray.png").write_bytes((labels / "003.png").read_bytes())
    result = project.run("prepare")
    assert "train: 6 images, 6 with labels" in result.output
    assert "labels without an image: stray" in result.output
    (labels / "002.png").write_bytes((labels / "002.PNG").read_bytes())  # exact: the other strays
    assert "train: 6 images, 6 with labels" in project.run("prepare").output
    (labels / "003.png").rename(labels / "003_mask.png")
    project.fails("prepare", "1 lack theirs: 003. Labels that fit no image: ", "003_mask")


def test_a_mask_of_one_bit_is_a_label(project: Project) -> None:
    masks(project, (0, 1))
    for path in Path("photos/labels").rglob("*.png"):
        Image.fromarray(np.asarray(Image.open(path)).astype(bool)).save(path)
    project.ok("prepare")


# Names of what is written


def test_no_photo_takes_the_name_of_another(tmp_path: Path) -> None:
    out, folders = tmp_path / "out", {str(tmp_path / "out"): "labels"}
    out.mkdir()
    for i, name in enumerate(("one/IMG.jpg", "two/IMG.jpg", "two/IMG.png", "two/img.jpg")):
        photo(tmp_path / name, np.roll(NOISE, i, axis=0))

    def run(*names: str) -> list[str]:
        claimed = claim(folders, [Photo(Path(name).stem, tmp_path / name) for name in names])
        for one in claimed:
            write_bytes(out / "labels" / f"{one.name}.png", b"")
        return [one.name for one in claimed]

    assert run("one/IMG.jpg") == ["IMG"]
    others = run("two/IMG.jpg", "two/IMG.png", "two/img.jpg")
    assert len({name.casefold() for name in ["IMG", *others]}) == 4
    assert all(name[:4] in ("IMG-", "img-") for name in others)
    assert run("two/img.jpg", "one/IMG.jpg") == [others[2], "IMG"]  # the same, in any order
    (tmp_path / "two").rename(tmp_path / "moved")
    assert run("moved/IMG.jpg") == [others[0]]
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy/IMG.jpg").write_bytes((tmp_path / "one/IMG.jpg").read_bytes())
    assert run("copy/IMG.jpg") != ["IMG"]  # another place, and the first is still there
    (out / "photos.csv").unlink()
    assert "IMG" not in run("one/IMG.jpg")  # a label of nobody knows whom is left alone


@pytest.mark.parametrize("stem", ["m" * 251, "道" * 83, "a\udcff", "tab\tstop"])
def test_names_that_file_systems_or_tables_do_not_hold(tmp_path: Path, stem: str) -> None:
    (tmp_path / "out").mkdir()
    path = tmp_path / f"{stem}.jpg"
    path.write_bytes(b"one")
    (claimed,) = claim({str(tmp_path / "out"): "labels"}, [Photo(stem, path)])
    for suffix in (".png", ".jpeg"):
        write_bytes(tmp_path / "out/labels" / f"{claimed.name}{suffix}", b"")
    assert claimed.name.isprintable()


@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 8])
def test_exported_pairs_agree_in_any_loader(tmp_path: Path, orientation: int) -> None:
    path = photo(tmp_path / "a.jpg", exif=exif(orientation), quality=95)
    upright = read_image(path)
    labels = np.zeros(upright.shape[:2], np.uint8)
    write_sample(
        tmp_path / "set", "train", "a", path, upright, labels, np.zeros((256, 3), np.uint8)
    )
    (found,) = (tmp_path / "set/images/train").iterdir()
    assert shows(found, *labels.shape)
    with Image.open(found) as image:
        raw = np.asarray(image.convert("RGB"), dtype=int)
    assert raw.shape == upright.shape and np.abs(raw - upright).mean() < 8
    assert (found.read_bytes() == path.read_bytes()) == (orientation == 1)
