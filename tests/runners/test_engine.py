"""Engines: really compiled with TensorRT-RTX, which needs no GPU; all else against stand-ins of TensorRT's versions."""

from __future__ import annotations

import dataclasses
import enum
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from helpers import SIZE, write_graph

from enet_deploy.artifacts import graph_metadata, set_graph_metadata, without_digest
from enet_deploy.cache import read_entry
from enet_deploy.commands import cli
from enet_deploy.errors import ArtifactError, BackendError, InputError, ParityError
from enet_deploy.files import sha256
from enet_deploy.runners.tensorrt.builder import BuildOptions, configure, require_buildable, to_engine
from enet_deploy.runners.tensorrt.card import EngineCard
from enet_deploy.runners.tensorrt.cuda import Gpu
from enet_deploy.runners.tensorrt.inspection import precision_shares
from enet_deploy.runners.tensorrt.library import import_tensorrt, make_logger
from enet_deploy.runners.tensorrt.monitor import _share, progress_bar

AHEAD = BuildOptions("trt-rtx", ("8.6",))
BUILDER = sys.modules[to_engine.__module__]


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return write_graph(tmp_path / "enet-fp32.onnx")


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """Where to write an engine: nothing else is in the folder."""
    return tmp_path / "out" / "enet.engine"


@pytest.fixture
def rtx() -> Any:
    return pytest.importorskip("tensorrt_rtx", exc_type=ImportError)


def no_gpu() -> Gpu:
    raise BackendError("no NVIDIA driver")


def gpu_of(capability: str) -> Callable[[], Gpu]:
    return lambda: Gpu("NVIDIA Orin (nvgpu)", capability)


# --- TensorRT-RTX: no GPU needed ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "fp16-int8"])
def test_every_precision_compiles_for_every_rtx_generation(
    rtx: Any,
    graphs: dict[str, Path],
    engine: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    precision: str,
) -> None:
    monkeypatch.setattr(BUILDER, "find_gpu", no_gpu)
    capabilities = ("7.5", "8.6", "8.9", "12.0")

    built = to_engine(graphs[precision], engine, BuildOptions("trt-rtx", capabilities))

    assert sorted(file.name for file in engine.parent.iterdir()) == ["enet.engine", "enet.engine.json"]
    assert built.path == engine and built.bytes == engine.stat().st_size > 1_000_000 and built.seconds > 0
    card = EngineCard.read(engine)
    assert card == built.card
    assert (card.engine_sha256, card.onnx_sha256) == (sha256(engine), sha256(graphs[precision]))
    assert (card.flavour, card.version, card.compute_capabilities) == ("trt-rtx", rtx.__version__, capabilities)
    assert card.gpu is None and card.precision_shares is None  # nothing here to load it
    assert (card.metadata.size, card.metadata.precision) == (SIZE, precision)
    assert ("calibration" in card.metadata.details) == ("int8" in precision)
    assert capfd.readouterr() == ("", "")  # a bar is for terminals


@pytest.mark.usefixtures("rtx")
def test_one_engine_for_several_generations(graph: Path, engine: Path) -> None:
    card = to_engine(graph, engine, BuildOptions("trt-rtx", ("8.9", "8.6", "8.9"))).card
    assert card.compute_capabilities == ("8.9", "8.6")


@pytest.mark.usefixtures("rtx")
def test_building_needs_no_torch(graph: Path, engine: Path) -> None:
    code = f"""
import sys
from enet_deploy.runners.tensorrt.builder import BuildOptions, to_engine
assert "onnx" not in sys.modules, "imported before a graph is read"
to_engine({str(graph)!r}, {str(engine)!r}, BuildOptions("trt-rtx", ("8.6",)))
assert not {{"torch", "onnxruntime"}} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    EngineCard.read(engine)


@pytest.mark.usefixtures("rtx")
def test_progress_goes_on_and_only_forward(graph: Path, engine: Path) -> None:
    told: list[tuple[str, float]] = []
    to_engine(graph, engine, AHEAD, progress=lambda phase, share: told.append((phase, share)))
    shares = [share for _, share in told]
    assert shares == sorted(shares) and 0 < shares[0] < 0.5 < shares[-1] <= 1
    assert "Building engine" in {phase for phase, _ in told}


@pytest.mark.usefixtures("rtx")
def test_ctrl_c_leaves_the_earlier_engine(graph: Path, engine: Path) -> None:
    to_engine(graph, engine, AHEAD)
    earlier = EngineCard.read(engine)
    # In a process of its own: beside OpenVINO, TensorRT-RTX 1.7 crashes when a build is cancelled
    script = (
        "import os, signal, sys\n"
        "from enet_deploy.runners.tensorrt.builder import BuildOptions, to_engine\n"
        "handler = signal.getsignal(signal.SIGINT)\n"
        "try:\n"
        "    stop = lambda phase, share: os.kill(os.getpid(), signal.SIGINT)\n"
        "    to_engine(sys.argv[1], sys.argv[2], BuildOptions('trt-rtx', ('8.6',)), progress=stop)\n"
        "except KeyboardInterrupt as interrupt:\n"
        "    print(interrupt, signal.getsignal(signal.SIGINT) is handler)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, graph, engine], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "no engine was written True\n"), done.stderr
    assert EngineCard.read(engine) == earlier and len(list(engine.parent.iterdir())) == 2


@pytest.mark.usefixtures("rtx")
def test_refused_graph_names_its_node(tmp_path: Path, engine: Path) -> None:
    path = write_graph(tmp_path / "odd.onnx", unknown_operation=True)
    with pytest.raises(ArtifactError, match=r"odd\.onnx .*'decoder/sharpen' \(Sharpen\)"):
        to_engine(path, engine, AHEAD)
    assert not engine.parent.exists()


@pytest.mark.usefixtures("rtx")
def test_failed_build_says_what_tensorrt_said(exported: Path, engine: Path) -> None:
    with pytest.raises(BackendError, match=r"enet-fp32\.onnx: .*workspace") as caught:
        to_engine(exported, engine, BuildOptions("trt-rtx", ("8.6",), workspace_mb=1))
    assert "\n" not in str(caught.value) and not engine.parent.exists()


@pytest.mark.parametrize("capability", ["9.9", "86", "8.60", "SM86", "abc", ""])
def test_unknown_compute_capability_lists_the_known(rtx: Any, graph: Path, engine: Path, capability: str) -> None:
    expected = (
        rf"compute capability '{capability}', expected one that TensorRT-RTX {rtx.__version__} builds for: 7\.5, 8"
    )
    with pytest.raises(InputError, match=expected):
        to_engine(graph, engine, BuildOptions("trt-rtx", ("8.6", capability)))
    assert not engine.parent.exists()


def test_process_has_one_logger_that_is_emptied_when_read(rtx: Any) -> None:
    logger = make_logger(rtx)
    assert make_logger(rtx) is logger
    logger.told()
    logger.log(rtx.ILogger.WARNING, "nothing to worry about")
    for _ in range(2):
        logger.log(rtx.ILogger.ERROR, "first\n line")
    logger.log(rtx.ILogger.INTERNAL_ERROR, "second")
    assert logger.told() == "first line; second"
    assert logger.told() == "TensorRT gave no reason"


# --- the card refuses what it does not describe ------------------------------------------------------------------


@pytest.mark.usefixtures("rtx")
def test_damaged_engine_or_card_is_refused(graph: Path, engine: Path) -> None:
    to_engine(graph, engine, AHEAD)
    whole, card = engine.read_bytes(), EngineCard.path(engine)
    text = json.dumps(without_digest(json.loads(card.read_text())))  # its digest would be enough to refuse a change

    for damaged in (whole[: len(whole) // 2], b"", whole[:-1] + bytes([whole[-1] ^ 1])):
        engine.write_bytes(damaged)
        with pytest.raises(ArtifactError, match=r"enet\.engine .*enet\.engine\.json .*SHA-256"):
            EngineCard.read(engine)
    engine.write_bytes(whole)

    card.write_text(text.replace(sha256(engine), sha256(graph)))
    with pytest.raises(ArtifactError, match=r"enet\.engine .*enet\.engine\.json .*SHA-256"):
        EngineCard.read(engine)
    for tampered in (
        text[:-9],
        "[]",
        text.replace('"flavour"', '"flavor"'),
        text.replace('"schema": 1', '"schema": 2'),
    ):
        card.write_text(tampered)
        with pytest.raises(ArtifactError, match=r"enet.engine.json"):
            EngineCard.read(engine)
    card.unlink()
    with pytest.raises(ArtifactError, match=r"enet\.engine has no card enet\.engine\.json"):
        EngineCard.read(engine)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("engine_sha256", None, "engine_sha256 None, expected text"),
        ("flavour", ["trt"], "flavour .*, expected trt or trt-rtx"),
        ("version", 5, "version 5, expected text"),
        ("version_compatible", "false", "version_compatible 'false', expected true or false"),
        ("hardware_compatible", "no", "hardware_compatible 'no', expected true or false"),
        ("compute_capabilities", "8.6", "compute_capabilities '8.6', expected a list such as"),
        ("compute_capabilities", ["8", 6], "compute_capabilities .*, expected a list such as"),
        ("compute_capabilities", [], "compute_capabilities .*, expected a list such as"),
        ("gpu", 3060, "gpu 3060, expected text or null"),
        ("precision_shares", "abc", "precision_shares 'abc', expected null, or shares such as"),
        ("precision_shares", [1], "precision_shares .*, expected null, or shares such as"),
        ("precision_shares", {"fp16": "all"}, "precision_shares .*, expected null, or shares such as"),
        ("precision_shares", {"fp16": float("nan")}, "the number NaN, expected a finite one"),
        ("colour\nof", "green", "unexpected keyword argument 'colour of'"),
    ],
)
def test_card_of_other_types_is_refused(
    install: Callable[..., StandIn], graph: Path, engine: Path, name: str, value: Any, expected: str
) -> None:
    install("11.1.0")
    to_engine(graph, engine, BuildOptions("trt", timing_cache=None))
    card = EngineCard.path(engine)
    card.write_text(json.dumps({**without_digest(json.loads(card.read_text())), name: value}))
    with pytest.raises(ArtifactError, match=rf"enet.engine.json .*{expected}") as caught:
        EngineCard.read(engine)
    assert "\n" not in str(caught.value)


def test_card_without_its_engine_or_without_end(install: Callable[..., StandIn], graph: Path, engine: Path) -> None:
    install("11.1.0")
    to_engine(graph, engine, BuildOptions("trt", timing_cache=None))
    engine.unlink()
    with pytest.raises(ArtifactError, match=r"enet\.engine .*No such file"):
        EngineCard.read(engine)
    EngineCard.path(engine).write_text("[" * 100_000)
    with pytest.raises(ArtifactError, match=r"^.*enet\.engine\.json .*recursion.*$"):
        EngineCard.read(engine)


# --- what goes wrong before a build ------------------------------------------------------------------------------


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def without_metadata(path: Path) -> None:
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save_model(model, path)


def laid_out_for_ort(path: Path) -> None:
    model = onnx.load(path)
    details = {"calibration": {"target": "ort"}}
    set_graph_metadata(model, dataclasses.replace(graph_metadata(model, path), precision="int8", details=details))
    onnx.save_model(model, path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (laid_out_for_ort, r"enet-fp32.onnx .*--target ort"),
        (Path.unlink, r"enet-fp32.onnx .*does not exist"),
        (lambda path: path.write_text("labels: none"), r"enet-fp32.onnx is no ONNX file"),
        (lambda path: path.write_bytes(b""), r"enet-fp32.onnx is no ONNX file"),
        (lambda path: path.write_bytes(b"\xff" * 20), r"enet-fp32.onnx is no ONNX file"),
        (truncated, r"enet-fp32.onnx is no ONNX file"),
        (without_metadata, r"enet-fp32.onnx carries no 'enet_deploy' metadata"),
    ],
)
def test_file_that_is_no_graph_of_ours(graph: Path, engine: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(graph)
    with pytest.raises(ArtifactError, match=message):
        to_engine(graph, engine, AHEAD)
    assert not engine.parent.exists()


def test_building_without_onnx(graph: Path, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(BackendError, match="pip install onnx"):
        to_engine(graph, engine, AHEAD)


@pytest.mark.parametrize(
    ("graph_name", "flavour", "expected"),
    [
        ("none.onnx", "trt", "none.onnx"),
        ("enet-fp32.onnx", "onnx", "engine 'onnx'"),
        ("enet-fp32.onnx", "trt-rtx", ""),  # TensorRT-RTX or the GPU is missing
    ],
)
def test_builder_as_a_process_fails_on_one_line(
    graph: Path, engine: Path, graph_name: str, flavour: str, expected: str
) -> None:
    """The last line on stderr is all that `cached_engine` reports."""
    command = [sys.executable, "-m", BUILDER.__name__, graph.with_name(graph_name), engine, flavour]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert expected in done.stderr and not engine.parent.exists()


def test_place_that_cannot_be_written_is_refused_before_the_build(graph: Path, tmp_path: Path) -> None:
    (tmp_path / "enet.engine.json").mkdir()
    for path in (graph / "enet.engine", tmp_path / "enet.engine", tmp_path):
        with pytest.raises(ArtifactError, match=r"cannot write"):
            to_engine(graph, path, AHEAD)


@pytest.mark.parametrize(("flavour", "module"), [("trt", "tensorrt"), ("trt-rtx", "tensorrt_rtx")])
def test_tensorrt_not_installed(
    graph: Path, engine: Path, monkeypatch: pytest.MonkeyPatch, flavour: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    extra = {"trt": "trt", "trt-rtx": "rtx"}[flavour]
    message = rf"the package '{module}' is not installed; pip install 'enet-deploy\[{extra}\]'"
    with pytest.raises(BackendError, match=message):
        to_engine(graph, engine, BuildOptions(flavour))
    with pytest.raises(BackendError, match=message):
        import_tensorrt(flavour)


def test_no_gpu_to_build_for(graph: Path, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BUILDER, "import_tensorrt", lambda _: StandIn("11.1.0"))
    monkeypatch.setattr(BUILDER, "find_gpu", no_gpu)
    with pytest.raises(BackendError, match=r"^no NVIDIA driver$"):
        to_engine(graph, engine, BuildOptions("trt"))
    with pytest.raises(BackendError, match=r"no NVIDIA driver.*--compute-capability 8\.6"):
        to_engine(graph, engine, BuildOptions("trt-rtx"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flavour": "onnx"}, "engine 'onnx', expected one of trt, trt-rtx"),
        ({"flavour": "trt", "compute_capabilities": ("8.6",)}, "8.6 with engine 'trt'"),
        ({"flavour": "trt-rtx", "version_compatible": True}, "version-compatible"),
        ({"flavour": "trt-rtx", "hardware_compatible": True}, "hardware-compatible"),
        ({"flavour": "trt", "workspace_mb": 0}, "workspace 0 MiB"),
        ({"flavour": "trt", "optimization_level": 6}, "level 6, expected 0 to 5"),
        ({"flavour": "trt", "max_batch": 0}, "batch of at most 0"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BuildOptions(**options)


# --- TensorRT 10 and 11, as stand-ins with what each version has -------------------------------------------------


def tell(*layers: tuple[str, str, str]) -> str:
    """The inspector's JSON, in TensorRT 10's form, on layers of (name, kind, type of its tensors)."""
    tensors = [[{"Name": "x", "Location": "Device", "Format/Datatype": type_}] for _, _, type_ in layers]
    told = [
        {"Name": name, "LayerType": kind, "Inputs": tensor, "Outputs": tensor}
        for (name, kind, _), tensor in zip(layers, tensors, strict=True)
    ]
    return json.dumps({"Layers": told, "Bindings": ["frames", "labels"]})


CONV = "CaskConvolution"
HALF = tell(("conv1", CONV, "Half"), ("conv2", CONV, "Half"), ("conv3", CONV, "Half"), ("conv4", CONV, "Float"))
ALMOST_FLOAT = tell(("conv1", CONV, "Half"), ("conv2", CONV, "Int8"), *[(f"conv{i}", CONV, "Float") for i in range(98)])
FLOAT = tell(("copy", "Reformat", "Half"), ("conv1", "CaskConvolution", "Row major linear FP32"))


class Config:
    """IBuilderConfig. As in the real one, no attribute can be set that a version does not have."""

    __slots__ = ("builder_optimization_level", "cache", "flags", "hardware_compatibility_level")
    __slots__ += ("pools", "profiles", "profiling_verbosity", "progress_monitor")

    def __init__(self) -> None:
        self.flags, self.pools, self.profiles, self.cache = {"TF32"}, {}, [], None

    def set_flag(self, flag: enum.Enum) -> None:
        self.flags.add(flag.name)

    def clear_flag(self, flag: enum.Enum) -> None:
        self.flags.discard(flag.name)

    def set_memory_pool_limit(self, pool: enum.Enum, size: int) -> None:
        self.pools[pool.name] = size

    def add_optimization_profile(self, profile: Any) -> None:
        self.profiles.append(profile)

    def create_timing_cache(self, content: bytes) -> Any:
        return None if content == b"damaged" else SimpleNamespace(serialize=lambda: content + b"measured.")

    def set_timing_cache(self, cache: Any, _ignore_mismatch: bool) -> bool:
        self.cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self.cache


class RtxConfig(Config):
    __slots__ = ("num_compute_capabilities", "targets")

    def set_compute_capability(self, target: enum.Enum, index: int) -> bool:
        self.targets = {**getattr(self, "targets", {}), index: target.name}
        return index < self.num_compute_capabilities


class StandIn:
    """A TensorRT module with the attributes that its version has, of those that differ; every other one is missing.

    Args:
        version: "10.3.0", or "rtx".
        inspected: what the inspector will tell of an engine.
        loads: whether an engine loads.
        dynamic: whether the graph takes any number of frames.
    """

    def __init__(self, version: str, inspected: str = HALF, loads: bool = True, dynamic: bool = False) -> None:
        self.__version__ = version
        older = version.startswith("10.")
        same = ("SAME_COMPUTE_CAPABILITY",) if not older or int(version.split(".")[1]) >= 10 else ()
        flags = ("FP16", "INT8") if older else ()
        batch = ("EXPLICIT_BATCH",) if older else ()
        self.BuilderFlag = enum.Enum("BuilderFlag", ("TF32", "VERSION_COMPATIBLE", "STRIP_PLAN", *flags))
        self.NetworkDefinitionCreationFlag = enum.IntEnum("Flag", (*batch, "STRONGLY_TYPED"), start=0)
        self.HardwareCompatibilityLevel = enum.Enum("Level", ("NONE", "AMPERE_PLUS", *same))
        self.MemoryPoolType = enum.Enum("MemoryPoolType", ("WORKSPACE",))
        self.ProfilingVerbosity = enum.Enum("ProfilingVerbosity", ("LAYER_NAMES_ONLY", "DETAILED"))
        self.LayerInformationFormat = enum.Enum("LayerInformationFormat", ("ONELINE", "JSON"))
        self.TensorIOMode = enum.Enum("TensorIOMode", ("INPUT", "OUTPUT"))
        if version == "rtx":
            self.ComputeCapability = enum.Enum("ComputeCapability", ("NONE", "CURRENT", "SM75", "SM86", "SM120"))
        self.ILogger = type("ILogger", (), {"ERROR": 1, "INTERNAL_ERROR": 0, "WARNING": 2})
        self.IProgressMonitor = object
        self.config = RtxConfig() if version == "rtx" else Config()
        self.network_flags = 0
        self._inspected, self._loads, self._shape = inspected, loads, (-1 if dynamic else 1, 16, 16, 3)
        self.inspected_shape: tuple[int, ...] | None = None

    def Builder(self, _logger: Any) -> Any:
        return SimpleNamespace(
            create_network=self._create_network,
            create_builder_config=lambda: self.config,
            create_optimization_profile=lambda: SimpleNamespace(set_shape=lambda *shapes: self.shapes.append(shapes)),
            build_serialized_network=lambda _network, config: self._build(config),
        )

    def _create_network(self, flags: int) -> Any:
        self.network_flags, self.shapes = flags, []
        frames = SimpleNamespace(name="frames", shape=self._shape)
        return SimpleNamespace(num_inputs=1, get_input=lambda _: frames)

    def _build(self, config: Config) -> memoryview:
        monitor = config.progress_monitor
        monitor.phase_start("Building engine", None, 2)
        assert monitor.step_complete("Building engine", 0) is True
        monitor.phase_finish("Building engine")
        return memoryview(b"an engine")

    def OnnxParser(self, _network: Any, _logger: Any) -> Any:
        return SimpleNamespace(parse=lambda _: True)

    def Runtime(self, _logger: Any) -> Any:
        self.runtime = SimpleNamespace(deserialize_cuda_engine=lambda _: self if self._loads else None)
        return self.runtime

    # ICudaEngine, its context and its inspector
    num_io_tensors = 2

    def get_tensor_name(self, index: int) -> str:
        return ("frames", "labels")[index]

    def get_tensor_mode(self, name: str) -> enum.Enum:
        return self.TensorIOMode.INPUT if name == "frames" else self.TensorIOMode.OUTPUT

    def get_tensor_shape(self, _name: str) -> tuple[int, ...]:
        return self._shape

    def get_tensor_profile_shape(self, _name: str, _profile: int) -> list[tuple[int, ...]]:
        return list(self.shapes[0][1:])

    def create_execution_context(self) -> Any:
        return SimpleNamespace(set_input_shape=lambda _name, shape: setattr(self, "inspected_shape", shape))

    def create_engine_inspector(self) -> Any:
        return SimpleNamespace(get_engine_information=lambda _: self._inspected)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., StandIn]:
    """Let the builder find a stand-in and a GPU."""

    def install(version: str, capability: str = "8.7", **options: Any) -> StandIn:
        trt = StandIn(version, **options)
        monkeypatch.setattr(BUILDER, "import_tensorrt", lambda _: trt)
        monkeypatch.setattr(BUILDER, "find_gpu", gpu_of(capability))
        return trt

    return install


VERSIONS = ["10.0.1", "10.3.0", "10.7.0", "10.10.0", "10.16.1", "11.1.0"]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_builds_strongly_typed_with_all_options(
    install: Callable[..., StandIn], tmp_path: Path, engine: Path, version: str
) -> None:
    trt = install(version)
    options = BuildOptions("trt", (), True, True, 512, 5, timing_cache=tmp_path / "cache")
    card = to_engine(write_graph(tmp_path / "enet-fp16.onnx", "fp16"), engine, options).card

    assert trt.network_flags == 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    assert trt.config.flags == {"VERSION_COMPATIBLE"}  # no FP16 or INT8: types are the graph's; and no TF32
    assert trt.config.pools == {"WORKSPACE": 512 << 20}
    assert trt.config.builder_optimization_level == 5
    assert trt.config.profiling_verbosity.name == "DETAILED"
    assert trt.config.hardware_compatibility_level.name == "AMPERE_PLUS"
    assert trt.runtime.engine_host_code_allowed is True  # else a version-compatible engine does not load
    assert card == EngineCard.read(engine) and engine.read_bytes() == b"an engine"
    assert (card.version, card.gpu, card.compute_capabilities) == (version, "NVIDIA Orin (nvgpu)", ("8.7",))
    assert (card.version_compatible, card.hardware_compatible) == (True, True)
    assert card.precision_shares == {"fp16": 0.75, "fp32": 0.25}


@pytest.mark.parametrize("version", VERSIONS)
def test_options_that_were_not_asked_for_are_left_alone(version: str) -> None:
    trt = StandIn(version)
    configure(trt, trt.config, BuildOptions("trt"), Gpu("NVIDIA Orin (nvgpu)", "8.7"))
    assert not trt.config.flags and not trt.config.pools
    assert not hasattr(trt.config, "builder_optimization_level")
    assert not hasattr(trt.config, "hardware_compatibility_level")


@pytest.mark.parametrize("version", VERSIONS)
def test_hardware_compatible_on_turing(version: str) -> None:
    trt, options = StandIn(version), BuildOptions("trt", hardware_compatible=True)
    turing = Gpu("NVIDIA T4", "7.5")
    if version in ("10.0.1", "10.3.0", "10.7.0"):
        with pytest.raises(InputError, match=r"NVIDIA T4.* 7\.5.*10\.10"):
            configure(trt, trt.config, options, turing)
    else:
        configure(trt, trt.config, options, turing)
        assert trt.config.hardware_compatibility_level.name == "SAME_COMPUTE_CAPABILITY"


@pytest.mark.parametrize(
    ("capabilities", "targets"), [((), {0: "CURRENT"}), (("12.0", "7.5"), {0: "SM120", 1: "SM75"})]
)
def test_rtx_gets_its_target_gpus(capabilities: tuple[str, ...], targets: dict[int, str]) -> None:
    trt = StandIn("rtx")
    configure(trt, trt.config, BuildOptions("trt-rtx", capabilities), None)
    assert trt.config.targets == targets and trt.config.num_compute_capabilities == len(targets)
    assert not trt.config.flags


@pytest.mark.parametrize(("capabilities", "inspected"), [((), True), (("7.5", "8.6"), True), (("7.5",), False)])
def test_rtx_engine_is_inspected_if_its_gpu_is_here(
    install: Callable[..., StandIn], graph: Path, engine: Path, capabilities: tuple[str, ...], inspected: bool
) -> None:
    install("rtx", "8.6")
    built = to_engine(graph, engine, BuildOptions("trt-rtx", capabilities))
    card = built.card
    assert (card.precision_shares is not None) is built.inspected is inspected
    assert card.compute_capabilities == (capabilities or ("8.6",))
    assert card.gpu == (None if capabilities else "NVIDIA Orin (nvgpu)")


@pytest.mark.parametrize("capability", ["9.0", "8.7"])
def test_gpu_that_rtx_does_not_support_is_refused_before_anything_is_built(
    install: Callable[..., StandIn], graph: Path, engine: Path, monkeypatch: pytest.MonkeyPatch, capability: str
) -> None:
    trt = install("rtx", capability)
    for starts in ("Builder", "Runtime"):
        monkeypatch.setattr(trt, starts, None)  # it would not get that far
    expected = rf"\(compute capability {capability}\), expected .*: 7\.5, 8\.6, 12\.0; build with --engine trt"
    for build in (lambda options: to_engine(graph, engine, options), require_buildable):
        with pytest.raises(BackendError, match=expected):
            build(BuildOptions("trt-rtx"))
    require_buildable(BuildOptions("trt-rtx", ("8.6",)))  # ahead of time, for another
    assert not engine.parent.exists()


def test_any_batch_is_up_to_the_largest_and_tuned_for_one(
    install: Callable[..., StandIn], graph: Path, engine: Path
) -> None:
    trt = install("11.1.0", dynamic=True)
    to_engine(graph, engine, BuildOptions("trt", max_batch=4, timing_cache=None))
    assert trt.shapes == [("frames", (1, 16, 16, 3), (1, 16, 16, 3), (4, 16, 16, 3))]
    assert len(trt.config.profiles) == 1
    assert trt.inspected_shape == (1, 16, 16, 3)  # of one shape, else the inspector tells no types


@pytest.mark.parametrize(
    ("precision", "inspected", "message"),
    [
        ("fp16", FLOAT, r"no layer of .* computes in fp16: 100% in fp32"),
        ("int8", FLOAT, r"no layer of .* computes in int8: 100% in fp32"),
        ("fp16-int8", FLOAT, r"no layer of .* computes in fp16: 100% in fp32"),
        ("fp16", ALMOST_FLOAT, r"98% of the layers .*: 98% in fp32, 1% in "),
        (
            "fp16-int8",
            ALMOST_FLOAT,
            r"98% of the layers .*: 98% in fp32, 1% in ",
        ),
    ],
)
def test_requested_precision_that_few_or_no_layers_got(
    install: Callable[..., StandIn], tmp_path: Path, engine: Path, precision: str, inspected: str, message: str
) -> None:
    install("10.16.1", inspected=inspected)
    graph = write_graph(tmp_path / "enet.onnx", precision)
    with pytest.raises(ParityError, match=rf"asked for {precision}, and {message}"):
        to_engine(graph, engine, BuildOptions("trt", timing_cache=None))
    assert not engine.parent.exists()


def test_int8_alone_may_leave_most_in_fp32(install: Callable[..., StandIn], tmp_path: Path, engine: Path) -> None:
    install("10.16.1", inspected=ALMOST_FLOAT)
    built = to_engine(write_graph(tmp_path / "enet.onnx", "int8"), engine, BuildOptions("trt", timing_cache=None))
    assert built.card.precision_shares == {"fp32": 0.98, "fp16": 0.01, "int8": 0.01}


def test_inspector_that_tells_no_types_is_not_a_missing_gpu(
    install: Callable[..., StandIn], graph: Path, engine: Path
) -> None:
    install("11.1.0", inspected="{}")
    built = to_engine(graph, engine, BuildOptions("trt", timing_cache=None))
    assert built.inspected and built.card.precision_shares is None


def test_phase_without_steps_is_no_error() -> None:
    assert _share([(0, 0), (1, 2)]) == 0.5


def test_progress_bar_of_a_command_moves_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command escapes control characters on standard error; the bar needs them to return to the line's start."""
    pytest.importorskip("tqdm")
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)

    def build(_: object) -> None:
        with progress_bar("building") as show:
            show("tactics", 0.5)

    assert cli.run(cli.Parser("enet-test"), build, []) == 0
    assert "\rbuilding" in terminal.getvalue() and "\\r" not in terminal.getvalue()


def test_engine_that_does_not_load_on_the_gpu_that_built_it(
    install: Callable[..., StandIn], graph: Path, engine: Path
) -> None:
    install("rtx", "8.6", loads=False)
    with pytest.raises(BackendError, match=r"TensorRT rtx does not load"):
        to_engine(graph, engine, BuildOptions("trt-rtx"))
    assert not engine.parent.exists()


def test_driver_that_tensorrt_cannot_use(
    install: Callable[..., StandIn], graph: Path, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = install("11.1.0")

    def builder(logger: Any) -> Any:
        logger.log(trt.ILogger.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(trt, "Builder", builder)
    with pytest.raises(BackendError, match=r"TensorRT 11\.1\.0 .*CUDA initialization failure with error: 35"):
        to_engine(graph, engine, BuildOptions("trt"))


def test_timing_cache_is_kept_per_gpu_and_version(
    install: Callable[..., StandIn], graph: Path, engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for version in ("10.3.0", "10.3.0", "11.1.0"):
        install(version)
        to_engine(graph, engine, BuildOptions("trt"))
    folder = tmp_path / "cache" / "enet_deploy"
    orin = "nvidia-orin-nvgpu-8-7-tensorrt"
    kept = {file.name: read_entry(file) for file in folder.iterdir()}
    assert kept == {f"{orin}-10-3-0.timing": b"measured.measured.", f"{orin}-11-1-0.timing": b"measured."}

    damaged = folder / f"{orin}-11-1-0.timing"
    damaged.write_bytes(b"damaged")
    to_engine(graph, engine, BuildOptions("trt"))
    assert read_entry(damaged) == b"measured."

    install("rtx", "8.6")
    to_engine(graph, engine, BuildOptions("trt-rtx"))
    assert len(list(folder.iterdir())) == 2


def test_build_goes_on_if_the_timing_cache_cannot_be_written(
    install: Callable[..., StandIn], graph: Path, engine: Path
) -> None:
    install("11.1.0")
    to_engine(graph, engine, BuildOptions("trt", timing_cache=graph / "folder"))
    EngineCard.read(engine)


# --- the inspector's JSON ----------------------------------------------------------------------------------------


def layer(name: str, kind: str, inputs: list[Any], outputs: list[Any]) -> dict[str, Any]:
    return {"Name": name, "LayerType": kind, "Inputs": inputs, "Outputs": outputs, "TacticValue": "0x0"}


def old(type_: str) -> dict[str, Any]:
    return {"Name": "x", "Location": "Device", "Dimensions": [1, 16, 8, 8], "Format/Datatype": type_}


def new(type_: str, format_: str) -> dict[str, Any]:
    return {"Name": "x", "Location": "Device", "Dimensions": [1, 16, 8, 8], "Format": format_, "Datatype": type_}


HALF_CHANNELS, INT8_CHANNELS = (
    "Channel major FP16 format where channel % 8 == 0",
    "Thirty-two wide channel vectorized row major Int8 format",
)
TEN = {
    "Layers": [
        layer("Reformatting CopyNode for frames", "Reformat", [old("Row major linear UInt8 format")], [old("Half")]),
        layer("weights", "Constant", [], [old("Row major linear FP32")]),
        layer("__myl_CastTranSubDiv_myl0_1", "kgen", [old("UInt8")], [old("Half")]),
        layer("__myl_MoveReshTran_myl0_2", "kgen", [old("Float")], [old("Float")]),
        layer("conv1 + relu1", "CaskConvolution", [old(INT8_CHANNELS)], [old(HALF_CHANNELS)]),
        layer("conv2 + add2", "CaskConvolution", [old(INT8_CHANNELS), old(HALF_CHANNELS)], [old(INT8_CHANNELS)]),
        layer("__myl_EqWhere_myl0_3", "kgen", [old("Bool"), old("Half")], [old("Half")]),
        layer("fullconv", "CaskDeconvolutionV2", [old("Row major linear FP16 format")], [old("Float")]),
        layer("ArgMax", "TopK", [old("Row major linear FP32 format.")], [old("Row major linear Int32")]),
        layer("ids", "kgen", [old("Int32")], [old("UInt8")]),
    ],
    "Bindings": ["frames", "labels"],
}
ELEVEN = {
    "Layers": [
        layer("cast", "Cast", [new("UInt8", "Row major linear UInt8 format")], [new("Half", "Row major linear")]),
        layer("conv1", "CaskConvolution", [new("Half", "Channel major format")], [new("Half", "Channel major format")]),
        layer("conv2", "CaskConvolution", [new("BFloat16", "Row major")], [new("BFloat16", "Row major")]),
        layer("conv3", "CaskConvolution", [{"Name": "x", "Format": HALF_CHANNELS}], []),
        layer("sync", "signal", [], []),
    ],
    "I/O Tensors": [{"Name": "frames", "IOMode": "Input", "DataType": "UInt8", "Dimensions": [1, 8, 8, 3]}],
}


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (TEN, {"fp16": 0.5, "int8": 0.3333, "fp32": 0.1667}),
        (ELEVEN, {"fp16": 0.6667, "bf16": 0.3333}),
        ({"Layers": ["conv1 + relu1", "conv2"], "Bindings": []}, None),  # built without details
        ({"Layers": [layer("a", "CaskConvolution", [old("N/A due to dynamic shapes")], [])]}, None),
        ({"Layers": []}, None),
        ({}, None),
        ([], None),
    ],
)
def test_precision_shares(told: Any, expected: dict[str, float] | None) -> None:
    shares = precision_shares(json.dumps(told))
    assert shares == expected
    assert shares is None or list(shares) == list(expected or {})  # the largest first


def test_precision_shares_of_no_json() -> None:
    assert precision_shares("") is None
