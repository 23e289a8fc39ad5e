"""The words on a command line: those of other tools, examples in --help, suggestions, completion."""

from __future__ import annotations

import re
import shlex
import subprocess
from importlib import import_module

import pytest
from test_docs import SCRIPTS

from enet_console import COMMANDS
from enet_deploy import BACKENDS, InputError, __main__, open_runner
from enet_deploy.commands import cli
from enet_deploy.export import cli as export_cli


def refusal(module: str, line: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit, match="2"):
        import_module(module).make_parser().parse_args(line.split())
    return capsys.readouterr().err


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_has_two_examples_that_parse_and_a_version(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    parser = import_module(SCRIPTS[script]).make_parser()
    assert len(parser.examples) >= 2 and max(map(len, parser.format_help().splitlines())) <= 80
    shown = parser.format_help().split("\nexamples:\n")[1].splitlines()
    for example, line in zip(parser.examples, shown, strict=True):
        name, *words = shlex.split(example)
        assert name == script and example == line.strip()
        parser.parse_args(words)
    with pytest.raises(SystemExit, match="0"):
        parser.parse_args(["--version"])
    assert capsys.readouterr().out.strip() == __main__.__version__


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("--FP16", "fp16", True),
        ("--half --int8", "fp16", True),
        ("--precision int8-fp16", "precision", "fp16-int8"),
        ("--format onnx", "engine", "onnx"),
        ("--format=tensorrt", "engine", "trt"),
        ("--engine TensorRT-RTX", "engine", "trt-rtx"),
        ("--batch-size 4", "batch", 4),
        ("-- --half.onnx", "fp16", False),
    ],
)
def test_exact_words_of_other_tools_are_taken(line: str, field: str, value: object) -> None:
    assert getattr(export_cli.make_parser().parse_args(line.split()), field) == value


@pytest.mark.parametrize(
    ("script", "line", "meant"),
    [
        ("enet-export", "--imgsz 640", "--size"),
        ("enet-export", "--dynamic", "--dynamic-batch"),
        ("enet-export", "--engin trt", "--engine"),
        ("enet-segment", "a.onnx b.png --backend openvin", "openvino"),
        ("enet-bench", "--precision fp61", "fp16"),
        ("enet-segment", "a.onnx b.png --half", "--precision"),
        ("enet-segment", "a.onnx b.png --conf 0.5", "--confidence"),
        ("enet-data", "chek DATA", "check"),
        ("enet-data", "scenes DIR --cuont 3", "--count"),
    ],
)
def test_near_words_are_suggested(script: str, line: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(SCRIPTS[script], line, capsys)
    assert f"did you mean {meant}?" in said and said.count("\n") == 1


def test_no_suggestion_for_a_word_that_is_near_none(capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(SCRIPTS["enet-export"], "--xyzzy", capsys)
    assert "--xyzzy" in said and "did you mean" not in said


@pytest.mark.parametrize("word", ["fp16", "INT8", "half"])
def test_precision_of_a_file_is_not_computed_on_request(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(SCRIPTS["enet-segment"], f"a.onnx b.png --precision {word}", capsys)
    assert f"'{word}', expected bf16" in said and "enet-export --precision" in said and "did you mean" not in said


def test_backend_of_other_tools() -> None:
    assert {cli.one_of(BACKENDS)(word) for word in ("TensorRT", "onnxruntime")} == {"trt", "ort"}
    with pytest.raises(InputError, match=r"tensorrt.*did you mean trt"):
        open_runner("a.onnx", "tensorrt")


@pytest.mark.parametrize("line", ["--fp16 --precision int8", "--int8 --precision fp32"])
def test_precision_that_contradicts_itself(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert export_cli.main(line.split()) == 2
    assert line.split()[-1] in capsys.readouterr().err


@pytest.mark.parametrize("line", ["scenes SCENES", "CamVid CAMVID", "check INIT", "unzip a.zip Check"])
def test_a_folder_named_like_a_subcommand_keeps_its_case(line: str) -> None:
    args = import_module(SCRIPTS["enet-data"]).make_parser().parse_args(line.split())
    assert str(args.dir) == line.split()[-1]


def test_umbrella(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert __main__.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert all(f"  enet {name} " in shown for name in COMMANDS) and shown.count("\n  enet ") == len(COMMANDS) + 2
    assert __main__.main(["exprot"]) == 2
    assert "did you mean export?" in capsys.readouterr().err
    __main__.main(["\x1b[31mfoo"])
    assert r"command '\x1b[31mfoo'" in capsys.readouterr().err


def test_bash_completes_options_their_words_and_commands() -> None:
    pytest.importorskip("shtab")
    script = __main__.completion("bash")
    for words, expected in {
        "enet ex": "export",
        "enet export --prec": "--precision",
        "enet-export --precision int": "int8",
        "enet-data chec": "check",
    }.items():
        program, *rest = words.split()
        (function,) = re.findall(rf"^complete .*-F (\w+) {program}$", script, re.MULTILINE)
        call = f"COMP_WORDS=({words}); COMP_CWORD={len(rest)}; {function} {program} {rest[-1]}"
        code = f'{script}\n{call}; printf "%s\\n" "${{COMPREPLY[@]}}"'
        done = subprocess.run(["bash", "-c", code], capture_output=True, text=True)
        assert expected in done.stdout.split(), (words, done)
