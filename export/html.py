"""A graph as one HTML page that runs it in a browser, without any server: `enet-export --html FILE`.

The page holds the graph, and ONNX Runtime for browsers out of an npm package that the user has installed. Its
content security policy lets it load nothing, so no picture can leave the browser.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import hashlib
import json
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from enet_deploy.errors import ArtifactError, BackendError, InputError
from enet_deploy.files import atomic_write, digest, parse_json
from enet_deploy.runners import Spec, open_runner

PACKAGE = "onnxruntime-web"
INSTALL = f"npm install {PACKAGE}"
OLDEST = (1, 24, 3)  # the oldest whose page was seen to give ONNX Runtime's labels; 1.23.2 does not start

# Of the package's folder dist: ONNX Runtime's JavaScript, and its WebAssembly, for the CPU and for WebGPU
_CODE, _WASM = "ort.webgpu.bundle.min.mjs", "ort-wasm-simd-threaded.asyncify.wasm"
_BANNER = re.compile(r"/\*!\s*\* ONNX Runtime Web v(\S+)\s*\* (Copyright[^\n]*)\n")  # which MIT asks to keep


@dataclass(frozen=True)
class WebRuntime:
    """An installed npm package onnxruntime-web.

    Attributes:
        version: such as "1.30.0".
        code, wasm: its JavaScript and its WebAssembly, compressed, as text.
        licence: the text under which both may be given on.
    """

    version: str
    code: str
    wasm: str
    licence: str


def add_options(group: argparse._ArgumentGroup) -> None:
    page = "also write a page that runs the graph in a browser, without a server; needs npm install onnxruntime-web"
    npm = "where that npm package is (default: node_modules here or above)"
    group.add_argument("--html", type=Path, metavar="FILE", help=page)
    group.add_argument("--npm", type=Path, metavar="DIR", help=npm)


def check_options(args: argparse.Namespace) -> WebRuntime | None:
    """Return what --html needs, None without it. Called before the export, which takes long."""
    if args.html is None:
        if args.npm is not None:
            raise InputError(f"--npm {args.npm} without a page to write, expected --html FILE too")
        return None
    if args.html.suffix != ".html":
        raise InputError(f"--html {args.html}, expected a name that ends in .html, as browsers open pages")
    import jinja2  # noqa: F401  told before the export if it is not installed

    return find_runtime(args.npm)


def write(args: argparse.Namespace, graph: Path, runtime: WebRuntime) -> None:
    """Do what --html says with a graph; print what was written."""
    size = write_page(graph, args.html, runtime)
    print(f"{args.html}  {size / 1e6:.1f} MB, {graph.name} with {PACKAGE} {runtime.version}; open it in a browser")


def find_runtime(folder: Path | None = None) -> WebRuntime:
    """Read the npm package onnxruntime-web.

    Args:
        folder: of the package, or one with a node_modules in it. By default the package is searched as Node does it:
            in node_modules here and in all folders above.

    Raises BackendError if there is none, or if it is too old, incomplete, or under another licence than MIT.
    """
    starts = [Path.cwd(), *Path.cwd().parents] if folder is None else [folder]
    places = [start / "node_modules" / PACKAGE for start in starts] + ([] if folder is None else [folder])
    place = next((place for place in places if (place / "package.json").is_file()), None)
    if place is None:
        where = f"{folder} holds none" if folder else f"no node_modules here or above {Path.cwd()} holds one"
        raise BackendError(
            f"the npm package {PACKAGE} is needed, but {where}; {INSTALL}, or name its folder with --npm"
        )
    try:
        facts = parse_json((place / "package.json").read_text(encoding="utf-8"))
        named, version, licence = (str(facts[key]) for key in ("name", "version", "license"))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise BackendError(f"{place}/package.json cannot be read ({error!r}); {INSTALL} again") from None
    if named != PACKAGE:
        raise BackendError(f"{place} is the npm package '{named}', expected {PACKAGE}; {INSTALL}")
    if _numbers(version) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise BackendError(f"{place} is of version {version}, expected {oldest} or later; {INSTALL}@latest")
    if licence != "MIT":
        raise BackendError(f"{place} has the licence '{licence}', expected MIT, which is copied into the page")
    try:
        code, wasm = ((place / "dist" / name).read_bytes() for name in (_CODE, _WASM))
    except OSError as error:
        raise BackendError(f"{error.filename} cannot be read ({error.strerror}); {INSTALL} again") from None
    banner = _BANNER.match(code[:1000].decode("utf-8", "replace"))
    if banner is None or banner[1] != version:
        said = "no version" if banner is None else f"version {banner[1]}"
        raise BackendError(f"{place}/dist/{_CODE} states {said}, expected {version}; {INSTALL} again")
    licence = f"ONNX Runtime Web {version}\n\n{_MIT.format(banner[2])}"
    return WebRuntime(version, _packed(code), _packed(wasm), licence)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version.partition("-")[0])[:3])


def write_page(graph: str | Path, path: str | Path, runtime: WebRuntime) -> int:
    """Write the page of a graph, whole or not at all. Returns its size in bytes.

    The same graph and package give the same bytes.

    Args:
        graph: a file of enet-export, in fp32, fp16 or int8, for one frame per call or any number of them.
        path: the page to write.
        runtime: what the page runs the graph with.

    Raises ArtifactError if the graph is missing, damaged, in fp16-int8 or for more frames per call, or if the page
    cannot be written; BackendError if ONNX Runtime is not installed.
    """
    with open_runner(graph, "ort") as runner:  # a graph that fails here would fail in the page
        spec = runner.spec
    if spec.precision == "fp16-int8":
        raise ArtifactError(
            f"{graph} is in fp16-int8, of which ONNX Runtime gives other labels in a browser; export it in fp32, fp16 "
            "or int8"
        )
    if spec.batch not in (None, 1):
        raise ArtifactError(
            f"{graph} takes {spec.batch} frames per call, expected 1, as a page has one picture; export it again with "
            "--batch 1 or --dynamic-batch"
        )
    content = Path(graph).read_bytes()
    page = _page(Path(graph).stem, spec, content, runtime).encode()
    with atomic_write(path) as temporary:
        temporary.write_bytes(page)
    return len(page)


def _page(name: str, spec: Spec, graph: bytes, runtime: WebRuntime) -> str:
    import jinja2

    files = resources.files(__package__) / "page"
    style, script, worker, template = (
        (files / file).read_text(encoding="utf-8") for file in ("page.css", "page.js", "worker.js", "page.html.j2")
    )
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(template).render(
        name=name,
        policy=_policy(style, script),
        facts=_facts(spec, graph, runtime),
        licence=runtime.licence,
        network=json.dumps(_network(spec)).replace("<", "\\u003c"),  # a class may be named </script>
        style=style,
        script=script,
        worker=worker,
        graph=_packed(graph),
        runtime=runtime.code,
        wasm=runtime.wasm,
    )


def _network(spec: Spec) -> dict[str, Any]:
    """What the page's code needs to know of the network."""
    colors = zip(spec.classes.names, spec.classes.overlay_colors, strict=True)
    return {
        "size": spec.size,
        "fit": spec.fit,
        "void": spec.classes.void,
        "classes": [{"name": name, "color": color} for name, color in colors],
    }


def _facts(spec: Spec, graph: bytes, runtime: WebRuntime) -> dict[str, str]:
    """What the page tells people of the network."""
    height, width = spec.size
    return {
        "what": f"ENet in {spec.precision}, {len(spec.classes)} classes, frames of {height}x{width} (fit: {spec.fit})",
        "graph": f"{len(graph) / 1e6:.2f} MB, SHA-256 {digest(graph)}",
        "from weights": f"SHA-256 {spec.weights_sha256}" if spec.weights_sha256 else "not known",
        "runs with": f"{PACKAGE} {runtime.version}",
    }


def _policy(style: str, script: str) -> str:
    """Nothing may be loaded. Scripts: this page's own, and those that it makes itself (blob:), which are the worker."""
    return (
        f"default-src 'none'; script-src '{_hash(script)}' blob: 'wasm-unsafe-eval'; worker-src blob:; "
        f"style-src '{_hash(style)}'; img-src data: blob:; media-src blob:; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _packed(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, compresslevel=6, mtime=0)).decode()


_MIT = """\
MIT License

{}

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated \
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the \
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit \
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the \
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE \
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR \
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR \
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE."""
