"""`enet-inspect`, and `enet`, which runs every command by one name."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from helpers import SIZE, write_graph

from enet_deploy import __main__ as umbrella
from enet_deploy import __version__
from enet_deploy.commands.inspect import main
from enet_deploy.export.record import BUNDLED_RECORD, Record
from enet_deploy.files import sha256
from enet_deploy.runners.tensorrt.card import EngineCard
from enet_deploy.weights import load_weights, save_weights


def lines(text: str) -> dict[str, str]:
    """Title -> what the command says, of one artifact."""
    return {line[2:20].strip(): line[21:].strip() for line in text.splitlines()[1:]}


def test_weights_and_their_graphs(
    weights: Path, exported: Path, quantized_graph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(weights)]) == 0
    told = lines(capsys.readouterr().out)
    assert "360,098 parameters" in told["what"] and told["file"].endswith(sha256(weights))
    assert "540 images" in told["trained on"] and "540 images" in told["recognises"]
    assert "scored on val" not in told  # their bias was corrected after the training
    net, metadata = load_weights(weights)
    scored = dataclasses.replace(metadata, details={**metadata.details, "figures": {"val_miou": 0.8}})
    save_weights(tmp_path / "scored.safetensors", net, scored)
    assert main([str(tmp_path / "scored.safetensors")]) == 0
    told = lines(capsys.readouterr().out)
    assert "0.8000" in told["scored on val"] and "fit" in told["scored on val"]
    for precision, graph in (("fp32", exported), ("int8", quantized_graph)):
        assert main([str(graph)]) == 0
        told = lines(capsys.readouterr().out)
        assert precision in told["what"] and told["from weights"].endswith(sha256(weights))
        assert "95 convolutions" in told["layers compute in"]
        assert f"frames uint8 (any, {SIZE[0]}, {SIZE[1]}, 3)" in told["inputs and outputs"]
    assert "82 in int8, 13 in fp32" in told["layers compute in"]
    method = Record.read(BUNDLED_RECORD).method
    assert told["calibrated by"].startswith(f"{method}, 100") and "layout all" in told["what"]


def test_exports_say_what_they_were_verified_on(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(exported)]) == 0
    told = lines(capsys.readouterr().out)
    assert told["verified"].endswith("8 drawn scenes") and re.match(r"(99\.99|100\.00)\d\d%", told["verified"])


def test_engines_are_described_by_their_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine, graph = tmp_path / "a.engine", write_graph(tmp_path / "a.onnx", "fp16")
    engine.write_bytes(b"engine")
    import onnx

    from enet_deploy.artifacts import graph_metadata
    from enet_deploy.files import digest

    metadata = graph_metadata(onnx.load(graph), graph)
    card = EngineCard(
        digest(b"engine"), sha256(graph), "trt-rtx", "1.7", ("8.6", "8.9"), None, False, False, {"fp16": 0.75}, metadata
    )
    card.write(engine)
    assert EngineCard.path(engine).read_text().count("\n") < 80  # a colour on one line
    assert main([str(engine)]) == 0
    told = lines(capsys.readouterr().out)
    assert told["layers compute in"] == "fp16 75%" and "8.6, 8.9" in told["for"]
    assert told["graph"].endswith(sha256(graph))
    engine.write_bytes(b"another")
    assert main([str(engine)]) == 2
    assert "a.engine" in capsys.readouterr().err


def test_graph_that_changed_is_refused(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = bytearray(exported.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "changed.onnx").write_bytes(content)
    assert main([str(tmp_path / "changed.onnx")]) == 2
    assert "changed.onnx" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["missing.onnx", "damaged.onnx", "foreign.txt"])
def test_what_is_no_artifact_is_refused(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / name
    if not name.startswith("missing"):
        path.write_bytes(b"\xff" * 20)
    assert main([str(path)]) == 2
    told = capsys.readouterr()
    assert name in told.err and told.err.count("\n") == 1 and told.out == ""


def test_long_values_hang_below_their_title_on_a_terminal(
    exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(exported)]) == 0
    plain = capsys.readouterr().out.splitlines()[1:]
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert main([str(exported)]) == 0
    shown = capsys.readouterr().out.splitlines()[1:]
    assert max(map(len, plain)) > 80
    assert max(len(line) for line in shown if "SHA-256" not in line and len(line.split()) > 1) <= 80
    assert " ".join(" ".join(shown).split()) == " ".join(" ".join(plain).split())


def test_one_name_for_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert umbrella.main(["inspect", "missing.onnx"]) == 2
    assert "missing.onnx" in capsys.readouterr().err
    assert umbrella.main(["--version"]) == 0 and capsys.readouterr().out.strip() == __version__
    assert umbrella.main([]) == 0 and "enet train" in capsys.readouterr().out
    assert umbrella.main(["enet-trian"]) == 2 and "train" in capsys.readouterr().err
