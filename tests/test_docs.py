"""The documentation is true: its Python runs, its commands parse, its links lead somewhere, its messages exist."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import pytest
from helpers import ROOT

from enet_console import COMMANDS
from enet_deploy.data.scenes import street_scene

MODEL_CARD = ROOT / "enet_deploy" / "weights" / "README.md"
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").rglob("*.md"), MODEL_CARD],
    key=lambda page: page.relative_to(ROOT).parts,
)
# The model card's commands made the weights with the options of their time
WITH_COMMANDS = [page for page in PAGES if page != MODEL_CARD]

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)

# What no test runs, and why. Commands are parsed all the same. Programs that are not this project's:
PROGRAMS = {
    "apt": "changes the machine",
    "apt-get": "changes the machine",
    "cat": "a file of a Jetson",
    "cd": "of the shell alone",
    "colcon": "needs ROS",
    "npm": "needs the network",
    "tritonserver": "needs the server; tests/export/test_triton.py starts it",
    "docker": "needs docker and the network",
    "eval": "of the shell alone; a test completes words with the script",
    "ffmpeg": "may not be installed",
    "g++": "may not be installed; tests/test_examples.py compiles it if it is",
    "git": "needs the network",
    "jetson_clocks": "needs a Jetson",
    "make": "makes an environment of its own",
    "mypy": "a check of the code",
    "nvpmodel": "needs a Jetson",
    "pip": "needs the network",
    "pytest": "runs the tests",
    "ray": "needs Ray, which may not be installed",
    "ros2": "needs ROS",
    "ruff": "a check of the code",
    "scp": "needs another machine",
    "source": "of the shell alone",
    "tegrastats": "needs a Jetson",
}
# Devices, as patterns of whole commands:
DEVICES = {
    r"^enet-data camvid ": "needs the network",
    r"^enet-export .*--html ": "needs the npm package onnxruntime-web; tests/export/test_html.py opens its pages",
    r"rtsp://": "needs a camera in the network",
    r" -m venv ": "makes an environment of its own",
    r"import .*tensorrt": "needs TensorRT",
    r"--engine trt( |$)": "needs TensorRT and a GPU",
    r"--engine trt-rtx$": "needs a GPU: without --compute-capability it is for that of this machine",
    r"\.engine( |$)": "needs a GPU",
    r" s3://": "needs a cluster",
    r"-m enet_deploy\.benchmarks\.gpu$": "needs a GPU; tests/benchmarks/test_gpu.py rehearses it",
}
FOREIGN_OPTIONS = {
    "--gpus",
    "--ipc",
    "--pid",
    "--runtime",
    "--system-site-packages",
    "--base-steps",
    "--steps",
    "--folds",
    "--seeds",
}
# Words of other tools that the parsers take, and an option of `enet` alone
FOREIGN_OPTIONS |= {"--http-port", "--grpc-port", "--exit-on-error", "--model-control-mode"}
FOREIGN_OPTIONS |= {"--half", "--batch-size", "--output", "--print-completion"}
ABLATION = "enet_deploy.benchmarks.ablation"  # in the history, as the pages say


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def fences(page: Path, language: str) -> list[str]:
    """The text of the page's blocks in a language; "" is a command line."""
    return [text for tag, text in FENCE.findall(page.read_text(encoding="utf-8")) if tag == language]


def spans(page: Path) -> list[str]:
    """The page's code in running text."""
    return CODE.findall(FENCE.sub("", page.read_text(encoding="utf-8")))


def simple_commands(text: str) -> Iterator[list[str]]:
    """The words of each command of a block, without comments, pipes, redirections, assignments and sudo."""
    for line in text.replace("\\\n", " ").splitlines():
        if re.match(r"[A-Z]+=\$\(", line):  # of the shell alone
            continue
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split = True
        command: list[str] = []
        words = iter(lexer)
        for word in words:
            if word in ("<", ">"):
                next(words)
            elif word in ("|", "&&", ";"):
                yield command
                command = []
            elif command or not (word == "sudo" or re.match(r"[A-Z_]+=", word)):
                command.append(word)
        yield command


class Call(NamedTuple):
    """A call of one of this project's commands: its module, and its arguments."""

    module: str
    arguments: list[str]


SCRIPTS = {f"enet-{name}": module for name, module in COMMANDS.items()}  # console script -> module


def call(words: list[str]) -> Call | None:
    """The call of one of this project's commands that the words are, or None."""
    if words[0] == "enet" and f"enet-{' '.join(words[1:2])}" in SCRIPTS:
        return Call(SCRIPTS[f"enet-{words[1]}"], words[2:])
    if words[0] in SCRIPTS:
        return Call(SCRIPTS[words[0]], words[1:])
    if words[0] in ("python", "python3", "torchrun") and "-m" in words:
        at = words.index("-m") + 1
        if "".join(words[at : at + 1]).startswith("enet_deploy."):
            return Call(words[at], words[at + 1 :])
    return None


class Parsed(BaseException):
    """Thrown when a command has parsed its arguments, so that it goes no further."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


def parse(called: Call, monkeypatch: pytest.MonkeyPatch, check: bool = True) -> argparse.ArgumentParser:
    """The command's parser, which has taken the arguments if they are to be checked; nothing is run."""
    original = argparse.ArgumentParser.parse_args

    def stop(self: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> None:
        if check:
            original(self, args, namespace)
        raise Parsed(self)

    with monkeypatch.context() as patched:
        patched.setattr(argparse.ArgumentParser, "parse_args", stop)
        try:
            main_of(called.module)(called.arguments)
        except Parsed as parsed:
            return parsed.parser
    raise AssertionError(f"{called} parsed nothing")


def main_of(module: str) -> Any:
    found = import_module(module)
    return (found if hasattr(found, "main") else import_module(f"{module}.cli")).main  # a package's is in its cli


def options(parser: argparse.ArgumentParser) -> set[str]:
    """The options of a parser and of its subcommands."""
    known = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            known.update(*map(options, action.choices.values()))
    return known


@pytest.fixture(scope="module")
def all_options() -> set[str]:
    """Every option of every command."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        calls = [Call(module, []) for module in SCRIPTS.values()]
        calls += [Call(SCRIPTS["enet-bench"], [command]) for command in ("compare", "show")]
        calls += [
            Call(f"enet_deploy.benchmarks.{module}", [])
            for module in ("gpu", "measure.training", "studies.soak", "studies.speed", "studies.unpool_forms")
        ]
        return set().union(*(options(parse(called, monkeypatch, check=False)) for called in calls))


@pytest.fixture
def files(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the files that the pages' Python reads; one small graph stands for every precision."""
    for precision in ("fp32", "fp16", "int8"):
        shutil.copy(exported, tmp_path / f"enet-{precision}.onnx")
    image, labels = street_scene(0, (240, 320))
    cv2.imwrite(str(tmp_path / "street.jpg"), image)
    for folder in ("ids-pc", "ids-jetson"):
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / "0.png"), labels)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.docs
@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if fences(page, "python")], ids=name)
def test_python_runs(page: Path, files: Path) -> None:
    pytest.importorskip("openvino")  # which most pages name
    names: dict[str, Any] = {}
    for block in fences(page, "python"):
        exec(compile(block, name(page), "exec"), names)
    if page.name == "README.md":
        assert cv2.imread("colours.png").shape == (240, 320, 3)  # of the image, not of the network


@pytest.mark.parametrize("page", [page for page in WITH_COMMANDS if fences(page, "")], ids=name)
def test_commands_parse(page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for block in fences(page, ""):
        for words in filter(None, simple_commands(block)):
            program = words[0].removeprefix(".venv/bin/")
            if called := call([program, *words[1:]]):
                try:
                    parse(called, monkeypatch)
                except SystemExit:
                    pytest.fail(f"{shlex.join(words)}\n{capsys.readouterr().err}")
            elif program == "make":
                assert {word for word in words[1:] if "=" not in word} <= targets, words
            elif program in ("python", "python3"):
                assert words[1] in ("-c", "-m") or (ROOT / words[1]).is_file(), words
            else:
                assert program in PROGRAMS, words


def why_not_run(words: list[str]) -> str | None:
    """Why no test runs a command; None for one that is run."""
    fitting = (reason for pattern, reason in DEVICES.items() if re.search(pattern, shlex.join(words)))
    return PROGRAMS.get(words[0].removeprefix(".venv/bin/")) or next(fitting, None)


def test_what_is_not_run_is_what_the_pages_hold() -> None:
    """No reason without a command, and a command of this project is left out for a device alone."""
    commands = [words for page in WITH_COMMANDS for block in fences(page, "") for words in simple_commands(block)]
    commands = [words for words in commands if words]
    assert PROGRAMS.keys() <= {words[0].removeprefix(".venv/bin/") for words in commands}
    assert not PROGRAMS.keys() & {*SCRIPTS, "enet", "python", "python3", "torchrun"}
    unused = [pattern for pattern in DEVICES if not any(re.search(pattern, shlex.join(words)) for words in commands)]
    assert unused == []


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=name)
def test_commands_and_options_in_the_text_exist(
    page: Path, all_options: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A span of code in running text may be a part of a command, so it is held against the options alone."""
    for span in spans(page):
        words = [word for word in span.split() if not re.match(r"[A-Z_]+=", word)]
        given = {word.split("=")[0] for word in words if re.match(r"--[a-z]", word)}
        called = call(words) if words else None
        if called is None:
            assert not re.fullmatch(r"enet-(?!deploy|camvid)[a-z]+", span.split(" ")[0]), span
            if span.startswith("--"):
                assert given <= all_options | FOREIGN_OPTIONS, span
        elif called.module != ABLATION:
            subcommand = [word for word in called.arguments[:1] if word in ("compare", "show")]
            parser = parse(Call(called.module, subcommand), monkeypatch, check=False)
            assert given <= options(parser), span


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in HEADING.findall(text)}


@pytest.mark.parametrize("page", [page for page in PAGES if fences(page, "json")], ids=name)
def test_json_is_json(page: Path) -> None:
    for block in fences(page, "json"):
        json.loads(block)


def test_messages_of_troubleshooting_are_in_the_code() -> None:
    folders = ("enet_deploy", "export", "calibration", "benchmarks")
    code = "\n".join(path.read_text(encoding="utf-8") for folder in folders for path in (ROOT / folder).rglob("*.py"))
    messages = re.findall(r"^### `(.*)`$", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(messages) >= 25
    assert [message for message in messages if message not in code] == []


def test_tests_that_security_names_exist() -> None:
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    named = set(CODE.findall((ROOT / "SECURITY.md").read_text(encoding="utf-8"))) - {"test_", "opt_in_out"}
    named = {name for name in named if re.fullmatch("[a-z0-9]+(_[a-z0-9]+)+", name)}
    assert len(named) > 50
    assert [name for name in sorted(named) if f"def test_{name}(" not in tests and f"def {name}(" not in tests] == []


def test_readme_is_a_page_and_every_command_is_documented() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
    quickstart = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
    table = quickstart[quickstart.index("## All commands") :]
    assert [script for script in SCRIPTS if f"`{script}" not in table] == []
