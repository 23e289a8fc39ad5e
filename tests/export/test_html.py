"""`enet-export --html`: the page in headless Chromium against ONNX Runtime, its pixels against OpenCV, and bad input.

The npm package is taken from node_modules here or above, or from the folder in NPM_DIR.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import http.server
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from helpers import ROOT, SIZE, one_line, save, write_graph

from enet_deploy import CAMVID, ClassList, open_runner
from enet_deploy.artifacts import graph_metadata, save_graph, set_graph_metadata
from enet_deploy.classes import LabelValues
from enet_deploy.data.label_maps import read_label_map
from enet_deploy.data.scenes import street_scene
from enet_deploy.errors import ArtifactError, BackendError
from enet_deploy.export import cli
from enet_deploy.export.html import INSTALL, OLDEST, WebRuntime, find_runtime, write_page
from enet_deploy.fit import FITS, Fit, fit_image, unfit_labels
from enet_deploy.images import read_image

SAMPLE = ROOT / "enet_deploy" / "data" / "sample.jpg"
LOADED = 60_000  # ms within which the page has the network, also on a busy machine

needs_opencv_5 = pytest.mark.skipif(
    int(cv2.__version__.partition(".")[0]) < 5, reason="OpenCV 4 takes another neighbour for some pixels of labels"
)


@pytest.fixture(scope="module")
def npm() -> WebRuntime:
    folder = os.environ.get("NPM_DIR")
    try:
        return find_runtime(Path(folder) if folder else None)
    except BackendError as error:
        pytest.skip(f"{error}; or set NPM_DIR")


def changed(graph: Path, path: Path, **values: Any) -> Path:
    """A graph with other metadata."""
    model = onnx.load(graph)
    set_graph_metadata(model, dataclasses.replace(graph_metadata(model, graph), **values))
    save_graph(model, path)
    return path


def opened(browser: Any, address: str, status: str = "Ready.", **context: Any) -> Any:
    """The page, when its status line says so."""
    page = browser.new_context(**context).new_page()
    page.goto(address)
    page.locator("#status", has_text=status).wait_for(timeout=LOADED)
    return page


def labelled(page: Any, picture: Path, folder: Path) -> np.ndarray:
    """The label map that the page saves of a picture, (h, w) uint8."""
    page.set_input_files("#file", str(picture))
    height, width, _ = read_image(picture).shape
    page.locator("#status", has_text=f"picture {height} x {width}").wait_for(timeout=LOADED)
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename == f"{picture.stem}-labels.png"
    download.value.save_as(folder / "labels.png")
    return read_label_map(folder / "labels.png", LabelValues.of(CAMVID), CAMVID.void).labels


@pytest.fixture(scope="module")
def plain_page(exported: Path, npm: WebRuntime, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "plain.html"
    write_page(exported, path, npm)
    return path


# --- the labels --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@needs_opencv_5
@pytest.mark.parametrize(("precision", "least"), [("fp32", 1.0), ("fp16", 0.999), ("int8", 0.97)])
def test_every_precision_gives_the_labels_of_onnx_runtime(
    browser: Any, npm: WebRuntime, graphs: dict[str, Path], tmp_path: Path, precision: str, least: float
) -> None:
    """Int8 graphs round differently: their sums are rounded in other places by other kernels."""
    write_page(graphs[precision], tmp_path / "page.html", npm)
    page = opened(browser, (tmp_path / "page.html").as_uri())
    odd = save(tmp_path / "odd.png", street_scene(5, (333, 777))[0])
    for picture in (SAMPLE, odd):
        labels = labelled(page, picture, tmp_path)
        with open_runner(graphs[precision], "ort") as runner:
            expected = runner.segment(read_image(picture))
        assert labels.shape == expected.shape and (labels == expected).mean() >= least


@pytest.mark.slow
@needs_opencv_5
@pytest.mark.parametrize("fit", ["letterbox", "crop"])
def test_the_fit_of_the_graph_is_kept(browser: Any, npm: WebRuntime, exported: Path, tmp_path: Path, fit: Fit) -> None:
    graph = changed(exported, tmp_path / "a.onnx", fit=fit)
    write_page(graph, tmp_path / "page.html", npm)
    page = opened(browser, (tmp_path / "page.html").as_uri())
    wide = save(tmp_path / "wide.png", street_scene(5, (200, 600))[0])
    with open_runner(graph, "ort") as runner:
        expected = runner.segment(read_image(wide))
    assert (expected == CAMVID.void).any() == (fit == "crop")
    assert np.array_equal(labelled(page, wide, tmp_path), expected)


@pytest.mark.slow
def test_own_classes_and_a_static_batch(browser: Any, npm: WebRuntime, tmp_path: Path) -> None:
    names = ("floor", "</script><script>document.title='run'</script>", "wall", "door & window")
    colors = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 99, 199))
    classes = ClassList(names, colors, None)
    graph = changed(write_graph(tmp_path / "plain.onnx"), tmp_path / "<b>room.onnx", classes=classes)
    write_page(graph, tmp_path / "page.html", npm)
    page = opened(browser, (tmp_path / "page.html").as_uri())
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    labels = labelled(page, save(tmp_path / "noise.png", noise), tmp_path)
    with open_runner(graph, "ort") as runner:
        assert np.array_equal(labels, runner.segment(noise))
    assert page.title().startswith("<b>room") and page.inner_text("h1") == "<b>room"
    rows = page.locator("#classes tr")
    assert [rows.nth(index).locator("td").nth(1).inner_text() for index in range(4)] == list(names)
    shares = [float(text.split()[0]) for text in page.locator(".share").all_inner_texts()]
    assert shares == pytest.approx([100 * (labels == index).mean() for index in range(4)], abs=0.06)
    painted = page.evaluate(PIXEL, [0, 0])  # half the picture, half the colour
    expected = (noise[0, 0, ::-1].astype(int) + colors[labels[0, 0]]) / 2
    assert painted[:3] == pytest.approx(expected, abs=2)


PIXEL = "([x, y]) => [...document.getElementById('shown').getContext('2d').getImageData(x, y, 1, 1).data]"


@needs_opencv_5
@pytest.mark.slow
def test_pixels_are_those_of_opencv(browser: Any) -> None:
    """The worker's own functions, on many sizes: frames and labels equal those of enet_deploy.fit."""
    page = browser.new_page()
    page.goto("about:blank")
    page.add_script_tag(content=(ROOT / "export" / "page" / "worker.js").read_text(encoding="utf-8"))
    rng = np.random.default_rng(0)
    sizes = [(720, 960), (192, 256), (96, 128), (1080, 1440), (1, 1), (48, 64), (97, 130)]
    for size in sizes + [tuple(int(side) for side in rng.integers(1, 300, 2)) for _ in range(25)]:
        image = rng.integers(0, 256, (*size, 3), np.uint8)
        ids = rng.integers(0, 11, SIZE, np.uint8)
        for fit in FITS:
            frame, labels = page.evaluate(FITTED, [encoded(image[..., ::-1]), encoded(ids), size, SIZE, fit])
            assert np.array_equal(decoded(frame, (*SIZE, 3)), fit_image(image, SIZE, fit)), (size, fit)
            assert np.array_equal(decoded(labels, size), unfit_labels(ids, size, fit, 255)), (size, fit)


def encoded(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def decoded(text: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(shape)


FITTED = """([rgb, labels, size, frame, fit]) => {
    const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const text = (bytes) => {
        let joined = "";
        for (let i = 0; i < bytes.length; i += 4096) joined += String.fromCharCode(...bytes.subarray(i, i + 4096));
        return btoa(joined);
    };
    network = { size: frame, fit, void: 255, classes: [] };
    const source = bytes(rgb), data = new Uint8ClampedArray(4 * size[0] * size[1]);
    for (let i = 0; i < size[0] * size[1]; i++) data.set(source.subarray(3 * i, 3 * i + 3), 4 * i);
    const [used, filled] = windows(size, frame, fit);
    const pixels = placed(resized({ data, height: size[0], width: size[1] }, used, filled), filled);
    return [text(pixels), text(unfitted(bytes(labels), used, filled, size))];
}"""


# --- the page ----------------------------------------------------------------------------------------------------


@pytest.fixture
def server(plain_page: Path) -> Iterator[tuple[str, list[str]]]:
    """Address of a server of the page's folder, and what it was asked for."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            asked.append(self.path)

    handler = functools.partial(Handler, directory=str(plain_page.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}/{plain_page.name}", asked
        served.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("served", [False, True])
def test_no_request_leaves_the_page(
    browser: Any, plain_page: Path, server: tuple[str, list[str]], tmp_path: Path, served: bool
) -> None:
    address, arrived = server
    address = address if served else plain_page.as_uri()
    page = browser.new_page()
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.goto(address)
    page.locator("#status", has_text="Ready.").wait_for(timeout=LOADED)
    labelled(page, SAMPLE, tmp_path)
    page.click("#camera")
    page.locator("#status", has_text="median of").wait_for(timeout=LOADED)
    page.click("#camera")
    assert [url for url in asked if not url.startswith(("blob:", "data:"))] == [address]
    assert not [text for text in said if "Content Security Policy" in text]
    sent = page.evaluate("url => fetch(url).then(() => 'sent', () => 'refused')", server[0])
    assert sent == "refused" and "Content Security Policy" in said[-1]
    assert arrived == ["/plain.html"] * served


REDS = ("color", "backgroundColor")


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 390)])
def test_it_fits_the_screen_and_the_keyboard(browser: Any, plain_page: Path, scheme: str, width: int) -> None:
    page = opened(browser, plain_page.as_uri(), viewport={"width": width, "height": 800}, color_scheme=scheme)
    ink, paper = (page.evaluate(f"parseInt(getComputedStyle(document.body).{of}.slice(4))") for of in REDS)
    assert (ink > paper) == (scheme == "dark")
    page.set_input_files("#file", str(SAMPLE))
    page.locator("#status", has_text="Network").wait_for(timeout=LOADED)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    reached = []
    page.evaluate("document.activeElement.blur()")
    for _ in range(5):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
    assert reached == ["file", "camera", "save", "alpha", "device"]
    page.focus("#alpha")
    page.keyboard.press("Home")  # no overlay: the picture itself
    sky = page.evaluate(PIXEL, [5, 5])
    page.keyboard.press("End")
    assert page.evaluate(PIXEL, [5, 5]) == [*CAMVID.overlay_colors[0], 255] != sky


@pytest.mark.slow
def test_a_dropped_picture_and_one_that_is_none(browser: Any, plain_page: Path, tmp_path: Path) -> None:
    page = opened(browser, plain_page.as_uri())
    page.evaluate(DROP, ["scene.jpg", base64.b64encode(SAMPLE.read_bytes()).decode()])
    page.locator("#status", has_text="720 x 960").wait_for(timeout=LOADED)
    page.evaluate(DROP, ["notes.txt", base64.b64encode(b"no picture").decode()])
    page.locator("#problem", has_text="notes.txt").wait_for()
    assert page.inner_text("#problem").count("\n") == 0


DROP = """([name, content]) => {
    const files = new DataTransfer();
    files.items.add(new File([Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0))], name));
    document.dispatchEvent(new DragEvent("drop", { dataTransfer: files, cancelable: true }));
}"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lacking", "named"),
    [
        ("WebAssembly.validate = () => false", "SIMD"),  # what a browser without it says of the page's test module
        ("delete window.DecompressionStream", "DecompressionStream"),
    ],
)
def test_browsers_that_cannot_run_it_say_what_they_lack(
    browser: Any, plain_page: Path, lacking: str, named: str
) -> None:
    page = browser.new_page()
    page.add_init_script(lacking)
    page.goto(plain_page.as_uri())
    page.locator("#problem", has_text=named).wait_for()
    assert page.locator("#file").is_disabled() and page.inner_text("#status") == ""


@pytest.mark.slow
def test_camera_that_is_allowed_after_another_choice_is_ended(browser: Any, plain_page: Path, tmp_path: Path) -> None:
    page = opened(browser, plain_page.as_uri())
    pending = "() => new Promise((give) => { window.give = give; })"
    page.evaluate(f"() => {{ navigator.mediaDevices.getUserMedia = {pending}; }}")
    page.click("#camera")
    labelled(page, SAMPLE, tmp_path)
    page.evaluate("give({ getTracks: () => [{ stop: () => { window.stopped = true; } }] })")
    assert page.evaluate("new Promise((done) => setTimeout(() => done(window.stopped === true), 100))")
    assert page.inner_text("#camera") == "Use the camera" and page.inner_text("#problem") == ""


@pytest.mark.slow
def test_a_device_that_is_chosen_while_another_loads(browser: Any, plain_page: Path, tmp_path: Path) -> None:
    page = browser.new_page()
    page.add_init_script(GPU)
    page.goto(plain_page.as_uri())
    page.locator("#status", has_text="Loading").wait_for()
    assert page.input_value("#device") == "webgpu"
    page.select_option("#device", "wasm")
    page.locator("#status", has_text="Ready.").wait_for(timeout=LOADED)
    assert labelled(page, SAMPLE, tmp_path).any() and page.inner_text("#problem") == ""
    assert page.evaluate("workers") == 2  # the user's was not replaced


GPU = """
Object.defineProperty(navigator, "gpu", { value: { requestAdapter: async () => ({ info: {} }) } });
self.workers = 0;
self.Worker = class extends Worker {
    constructor(url) { super(url); self.workers++; }
    postMessage(message, ...rest) {
        if (message.device !== "webgpu") super.postMessage(message, ...rest); // which never loads
    }
};
"""


@pytest.mark.slow
def test_of_two_pictures_the_later_one_counts(browser: Any, plain_page: Path, tmp_path: Path) -> None:
    """The first takes longer to read than the second."""
    page = opened(browser, plain_page.as_uri())
    page.evaluate(
        "() => { const read = createImageBitmap; let first = true; self.createImageBitmap = async (...of) => {"
        "if (first) { first = false; await new Promise((give) => { window.give = give; }); } return read(...of); }; }"
    )
    page.set_input_files("#file", str(SAMPLE))
    later = save(tmp_path / "later.png", street_scene(5, (100, 130))[0])
    labelled(page, later, tmp_path)
    page.evaluate("async () => { give(); await new Promise((done) => setTimeout(done, 1000)); }")
    assert "picture 100 x 130" in page.inner_text("#status")


@pytest.mark.slow
def test_without_a_camera_there_is_one_line(browser: Any, plain_page: Path) -> None:
    page = browser.new_page()
    page.add_init_script(
        "navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('', 'NotFoundError'))"
    )
    page.goto(plain_page.as_uri())
    page.click("#camera")
    page.locator("#problem", has_text="NotFoundError").wait_for()
    assert page.inner_text("#camera") == "Use the camera"


# --- the command -------------------------------------------------------------------------------------------------


def package(folder: Path, version: str = "1.30.0", stated: str | None = None, **facts: str) -> Path:
    """What of the npm package is looked at before a page is written."""
    place = folder / "node_modules" / "onnxruntime-web"
    (place / "dist").mkdir(parents=True)
    values = {"name": "onnxruntime-web", "version": version, "license": "MIT", **facts}
    (place / "package.json").write_text(json.dumps(values))
    banner = f"/*!\n * ONNX Runtime Web v{stated or version}\n * Copyright (c) Somebody.\n * Licensed\n */\n"
    (place / "dist" / "ort.webgpu.bundle.min.mjs").write_text(banner)
    (place / "dist" / "ort-wasm-simd-threaded.asyncify.wasm").write_bytes(b"\0asm")
    return folder


def test_the_command_writes_the_same_page_twice(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    below = package(tmp_path) / "deep" / "down"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    pages = []
    for options in ([], ["--npm", str(tmp_path)], ["--npm", str(tmp_path / "node_modules" / "onnxruntime-web")]):
        assert cli.main([str(exported), "--html", "a.html", *options]) == 0
        assert "a.html" in capsys.readouterr().out
        pages.append(Path("a.html").read_text())
    assert len(set(pages)) == 1 and "Copyright (c) Somebody." in pages[0] and "Permission is hereby granted" in pages[0]
    assert [path.name for path in below.iterdir()] == ["a.html"]


def without(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        next(package(folder).rglob(name)).unlink()
        return folder

    return make


OLD = ".".join(map(str, (*OLDEST[:2], OLDEST[2] - 1)))


@pytest.mark.parametrize(
    ("make", "value"),
    [
        (lambda folder: folder, INSTALL),
        (lambda folder: package(folder, OLD), OLD),
        (lambda folder: package(folder, version="none"), "none"),
        (lambda folder: package(folder, license="GPL-3.0"), "GPL-3.0"),
        (lambda folder: package(folder, name="left-pad"), "left-pad"),
        (lambda folder: package(folder, stated="1.29.0"), "1.29.0"),
        (without("*.wasm"), "ort-wasm-simd-threaded.asyncify.wasm"),
        (without("*.mjs"), "ort.webgpu.bundle.min.mjs"),
    ],
)
def test_unusable_packages_are_one_line(
    exported: Path,
    tmp_path: Path,
    make: Callable[[Path], Path],
    value: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main([str(exported), "--html", str(tmp_path / "a.html"), "--npm", str(make(tmp_path))]) == 2
    assert value in one_line(capsys)
    with pytest.raises(BackendError):
        find_runtime(tmp_path)
    assert not (tmp_path / "a.html").exists()


@pytest.mark.parametrize(
    ("options", "value"),
    [
        (["--html", "page.htm"], "page.htm"),
        (["--npm", "elsewhere"], "elsewhere"),
        (["--html", "a.html", "--html", "ONNX"], "ONNX"),
    ],
)
def test_impossible_options_are_one_line(
    exported: Path, tmp_path: Path, options: list[str], value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [str(tmp_path / "a.onnx") if option == "ONNX" else option for option in options]
    value = str(tmp_path / "a.onnx") if value == "ONNX" else value
    assert cli.main([str(exported), *options]) == 2
    assert value in one_line(capsys)


@pytest.mark.slow
def test_int8_over_half_is_refused(graphs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="fp16-int8"):
        write_page(graphs["fp16-int8"], tmp_path / "a.html", find_runtime(package(tmp_path)))


def test_a_graph_for_more_frames_per_call_is_refused(tmp_path: Path) -> None:
    model = onnx.load(write_graph(tmp_path / "one.onnx"))
    for port in (*model.graph.input, *model.graph.output):
        port.type.tensor_type.shape.dim[0].dim_value = 4
    save_graph(model, tmp_path / "four.onnx")
    with pytest.raises(ArtifactError, match="4 frames"):
        write_page(tmp_path / "four.onnx", tmp_path / "a.html", find_runtime(package(tmp_path)))
    assert not (tmp_path / "a.html").exists()
