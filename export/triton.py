"""Write a model repository for the Triton Inference Server: MODEL/config.pbtxt, labels.txt, and 1/, 2/ ... in it."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from enet_deploy.artifacts import Metadata, read_artifact
from enet_deploy.errors import ArtifactError, InputError
from enet_deploy.files import atomic_write, hidden_folder, require_writable
from enet_deploy.runners.graph import Signature, check_signature
from enet_deploy.runners.onnx_file import read_metadata, read_signature
from enet_deploy.runners.tensorrt.builder import BuildOptions

MODEL_FILES = {"python": "model.onnx", "onnxruntime": "model.onnx", "tensorrt": "model.plan"}  # as each backend expects
LABELS = "labels.txt"
PYTHON_MODEL = Path(__file__).with_name("triton_model.py")
# What clients rely on. The rest of a config.pbtxt is the operator's, who may tune it and add parameters
CONTRACT = ("name", "backend", "max_batch_size", "input", "output")


def add_options(group: argparse._ArgumentGroup) -> None:
    folder = "also write a model repository for the Triton Inference Server; frames per call: up to --max-batch"
    backend = "what runs the model in the server: python (default) calls open_runner on the CPU; onnxruntime and "
    backend += "tensorrt are the server's own on a GPU, the last for --engine trt"
    group.add_argument("--triton", type=Path, metavar="DIR", help=folder)
    group.add_argument("--triton-backend", choices=MODEL_FILES, help=backend)


def check_options(args: argparse.Namespace) -> None:
    """Check --triton against the other options before the long work. A graph from weights takes any number of frames.

    Raises InputError for options that do not suit each other or for a graph with a fixed batch, ArtifactError if the
    folder cannot be written, ModuleNotFoundError without tritonclient.
    """
    if args.triton is None:
        if args.triton_backend is not None:
            raise InputError(f"--triton-backend {args.triton_backend} without --triton, expected --triton DIR too")
        return
    args.triton_backend = args.triton_backend or "python"
    if args.triton_backend == "tensorrt" and args.engine != "trt":
        raise InputError(f"--triton-backend tensorrt with --engine {args.engine}, expected --engine trt: it runs those")
    if args.model is None:
        if args.batch is not None:
            raise InputError(f"--batch {args.batch} with --triton, expected without: the server makes the batches")
        args.dynamic_batch = True
    else:
        _interface(args.model)
    if args.triton.exists() and not args.triton.is_dir():
        raise ArtifactError(f"--triton {args.triton} is a file, expected a folder")
    require_writable(args.triton / "model" / "config.pbtxt")
    from tritonclient.grpc import model_config_pb2  # noqa: F401  told before the export if it is not installed


def write(args: argparse.Namespace, graph: Path, engine: Path | None) -> None:
    """Do what --triton says with a graph and, for the backend tensorrt, with its engine; print what was written."""
    served = engine if args.triton_backend == "tensorrt" else None
    backend, max_batch = args.triton_backend, args.max_batch or BuildOptions.max_batch
    version = write_repository(args.triton, graph, backend, served, max_batch)
    print(f"{version}  for Triton's backend {backend}; serve it: tritonserver --model-repository {args.triton}")


def _interface(graph: Path) -> tuple[Metadata, Signature]:
    """Return what a graph says of itself. Raises InputError if its batch is fixed, ArtifactError as runners do."""
    content = read_artifact(graph)
    metadata, signature = read_metadata(content, graph), read_signature(content, graph)
    batch = check_signature(signature, metadata, graph)
    if batch is not None:
        raise InputError(
            f"{graph} takes {batch} frame(s) per call, expected any number, as the server makes the batches; "
            "export it with --dynamic-batch"
        )
    return metadata, signature


def write_repository(
    folder: Path,
    graph: Path,
    backend: str = "python",
    engine: Path | None = None,
    max_batch: int = BuildOptions.max_batch,
) -> Path:
    """Add a graph as a model to a repository, or as the next version of the model of its name.

    The name is the graph's, without suffix. An existing config.pbtxt stays as it is, so it may be tuned. The version
    appears whole, so a server may watch the folder.

    Args:
        folder: the repository.
        graph: for any number of frames per call.
        backend: one of `MODEL_FILES`.
        engine: built from the graph; what "tensorrt" runs.
        max_batch: frames per call, at most.

    Returns the version's folder. Raises InputError if the graph has a fixed batch, ArtifactError if the model exists
    with another interface or other classes, or if it cannot be written.
    """
    metadata, signature = _interface(graph)
    model = folder / graph.stem
    config = _config(model.name, backend, metadata, signature, max_batch)
    labels = "".join(f"{name}\n" for name in metadata.classes.names)
    if (model / "config.pbtxt").exists():
        _require_same_contract(model / "config.pbtxt", config)
    else:
        from google.protobuf import text_format

        _write(model / LABELS, labels)
        _write(model / "config.pbtxt", text_format.MessageToString(config))
    with hidden_folder(model, model) as hidden:
        content = hidden / "version"
        content.mkdir()
        shutil.copyfile(graph if engine is None else engine, content / MODEL_FILES[backend])
        if backend == "python":
            shutil.copyfile(PYTHON_MODEL, content / "model.py")
        versions = [int(entry.name) for entry in model.iterdir() if entry.name.isdecimal()]
        version = model / str(max(versions, default=0) + 1)
        try:
            content.rename(version)
        except OSError as error:
            raise ArtifactError(f"cannot write {version}: {error}; run the command again") from None
    return version


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, "utf-8")


def _config(name: str, backend: str, metadata: Metadata, signature: Signature, max_batch: int) -> Any:
    """Return the ModelConfig. Shapes in it are without the batch."""
    from tritonclient.grpc import model_config_pb2 as pb

    types = {"uint8": pb.TYPE_UINT8, "float32": pb.TYPE_FP32}
    config = pb.ModelConfig(name=name, backend=backend, max_batch_size=max_batch)
    for port, (dtype, shape) in signature.items():
        if port == "frames":
            config.input.add(name=port, data_type=types[dtype], dims=shape[1:])
        else:
            config.output.add(name=port, data_type=types[dtype], dims=shape[1:])
            config.output[-1].label_filename = LABELS if port == "labels" else ""
    # The server gives a client the configuration, and not the labels file
    facts = {"classes": json.dumps(metadata.classes.to_json()), "fit": metadata.fit}
    for key, value in facts.items():
        config.parameters[key].string_value = value
    config.dynamic_batching.SetInParent()  # without a delay: what waits while a call runs is the next call's batch
    config.version_policy.latest.num_versions = 1
    kind = pb.ModelInstanceGroup.KIND_CPU if backend == "python" else pb.ModelInstanceGroup.KIND_GPU
    config.instance_group.add(count=1, kind=kind)
    for batch in sorted({1, max_batch}):
        warm_up = config.model_warmup.add(name=f"{batch} frames", batch_size=batch)
        frames = warm_up.inputs["frames"]
        frames.data_type, frames.zero_data = pb.TYPE_UINT8, True
        frames.dims.extend(config.input[0].dims)
    return config


def _require_same_contract(path: Path, config: Any) -> None:
    """Raise ArtifactError unless a model's config.pbtxt promises to clients what `config` does."""
    from google.protobuf import text_format

    try:
        found = text_format.Parse(path.read_text("utf-8"), type(config)())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise ArtifactError(f"{path} cannot be read as a model's configuration: {error}; mend or remove it") from None
    other = [field for field in CONTRACT if getattr(found, field) != getattr(config, field)]
    other += [key for key, value in config.parameters.items() if found.parameters[key] != value]
    if other:
        raise ArtifactError(
            f"{path} has another '{other[0]}' than this export, expected the same in all versions of a model; name "
            "another folder, or give the graph another name with --name"
        )
