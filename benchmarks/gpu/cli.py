"""A report on an NVIDIA card, to send to the project: what runs there, whether it is right, and how fast it is.

    python -m enet_deploy.benchmarks.gpu

Each step (`steps.py`) runs in its own process with a time limit. If one crashes, hangs or leaves CUDA in a bad state,
this is reported and the next one runs. Findings are written to files at once. Nothing is sent anywhere.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import enet_deploy
from enet_deploy import console
from enet_deploy.child import python_main
from enet_deploy.commands import cli
from enet_deploy.data import open_data
from enet_deploy.environment import environment
from enet_deploy.errors import BackendError, InputError, RequirementError
from enet_deploy.files import atomic_write, require_writable, write_json
from enet_deploy.runners.tensorrt.cuda import find_gpu
from enet_deploy.runners.tensorrt.library import FLAVOURS, import_tensorrt

from .findings import REHEARSAL, SCHEMA, Settings
from .steps import STEPS

MINUTES = 9.5  # for all steps together
SPLIT = "val"
LEAST = 5.0  # seconds; no step starts with less time left
KILLED = 10.0  # seconds to wait for the end of a killed process

NAME, REHEARSAL_NAME = "gpu-report", "gpu-rehearsal"  # different, so that nobody takes one for the other
DONE, NOT_HERE, FAILED, CUT_SHORT, NOT_RUN = "done", "not here", "failed", "cut short", "not run"

# The line of a log that says why a step ended. PyTorch adds lines of advice behind its errors
_WHY = re.compile(r"^(?:steps: error: |(?=[\w.]*(?:Error|Exception)\b))(.+)", re.MULTILINE)

Report = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Command:
    """A step as a process.

    Attributes:
        title: shown in the report.
        limit: seconds that it may take.
        arguments: the command line; it writes findings to `steps/NAME.json` in the report's folder.
    """

    title: str
    limit: float
    arguments: Sequence[str]


def commands(names: Sequence[str], work: Path, out: Path, minutes: float) -> dict[str, Command]:
    """The steps of these names. If all together may take longer than `MINUTES`, each step may too."""
    longer, found = max(1.0, minutes / MINUTES), {}
    for name in names:
        process = python_main(f"{__package__}.steps", name, str(work), str(_files(name, out)[0]))
        found[name] = Command(STEPS[name].title, STEPS[name].limit * longer, process)
    return found


def _files(step: str, out: Path) -> tuple[Path, Path]:
    """The files with the findings of a step, and with what it printed."""
    return out / "steps" / f"{step}.json", out / "logs" / f"{step}.txt"


def run_all(chosen: Mapping[str, Command], report: Report, work: Path, out: Path, seconds: float) -> Iterator[str]:
    """Run one step after the other and write the whole report after each. Yields a line of text about each step.

    Args:
        report: the steps are added to it, all as "not run" at first.
        work: current folder of the processes.
        out: folder of the report.
        seconds: time for all steps together.
    """
    end, width = time.monotonic() + seconds, 2 + max(map(len, chosen))
    report["steps"] = [
        {"step": name, "title": command.title, "state": NOT_RUN, "reason": "", "seconds": 0.0, "findings": []}
        for name, command in chosen.items()
    ]
    for step in report["steps"]:
        left = end - time.monotonic()
        if left >= LEAST:
            step |= run_step(step["step"], chosen[step["step"]], work, out, left)
            write(report, out)
        else:
            step["reason"] = f"{seconds / 60:.3g} minutes were over"
        yield f"{step['step']:<{width}}{step['state']:<10}{step['seconds']:6.1f} s  {step['reason']}".rstrip()


def run_step(name: str, command: Command, work: Path, out: Path, left: float) -> dict[str, Any]:
    """Run a step and say how it ended: `state`, `reason`, `seconds`, `findings`."""
    findings, log = _files(name, out)
    limit, begun = min(command.limit, left), time.monotonic()
    code = _process(command.arguments, work, log, limit)
    seconds = round(time.monotonic() - begun, 1)
    log.write_text(_anonymous(log.read_text(encoding="utf-8", errors="replace"), work, out), encoding="utf-8")
    written = json.loads(findings.read_text(encoding="utf-8")) if findings.exists() else {}
    found = _anonymous_texts(written, work, out)
    state, reason = DONE, ""
    if code is None and limit < command.limit:
        state, reason = CUT_SHORT, f"the time was over after {limit:.0f} s of it"
    elif code is None:
        state, reason = FAILED, f"stopped: it took longer than {limit:.0f} s"
    elif code < 0:
        state, reason = FAILED, f"it died of {signal.Signals(-code).name}"
    elif code > 0:
        state, reason = FAILED, _why(log) or f"exit code {code}"
    elif found.get("skipped"):
        state, reason = NOT_HERE, found["skipped"]
    return {"state": state, "reason": reason, "seconds": seconds, "findings": found.get("findings", [])}


def _process(arguments: Sequence[str], work: Path, log: Path, limit: float) -> int | None:
    """Run a process; return its exit code, negative for a signal, or None if it was stopped at the limit.

    Processes that it started are ended too.
    """
    # A session of its own: Ctrl-C reaches only this process, and all processes of the step can be ended together.
    # Caches of its own: nothing that an earlier run built is used.
    changes = {"PYTHONFAULTHANDLER": "1", "PYTHONUNBUFFERED": "1", "XDG_CACHE_HOME": str(work / "cache")}
    changes["TORCHINDUCTOR_CACHE_DIR"] = str(work / "cache" / "inductor")
    with log.open("wb") as file:
        process = subprocess.Popen(
            arguments, cwd=work, env=os.environ | changes, stdin=subprocess.DEVNULL, stdout=file,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):  # if a driver hangs, even a killed process stays
                process.wait(KILLED)


def _why(log: Path) -> str:
    """The last error in a log, or its last line if it has no error."""
    text = log.read_text(encoding="utf-8").strip()
    return console.printable((_WHY.findall(text) or text.splitlines() or [""])[-1])[:600]


# The report must not say whose machine it was made on


def _anonymous(text: str, work: Path, out: Path) -> str:
    """Replace this machine's folders and name by words, and the user's name in other paths."""
    # in a checkout, links in the package lead to this folder, which then lies beside it
    package, own = Path(enet_deploy.__file__).parent, Path(__file__).resolve().parents[2]
    folders = {work: "WORK", out: "OUT", package: "CODE", own: "CODE"}
    with suppress(RuntimeError):  # a user without a home
        folders[Path.home()] = "~"
    for folder, word in sorted(folders.items(), key=lambda item: len(str(item[0])), reverse=True):
        if folder.name:  # the root has none
            text = re.sub(rf"{re.escape(str(folder))}(?!\w)", word, text)
            if word == "~":  # also /media/NAME/...
                text = re.sub(rf"(?<=/){re.escape(folder.name)}(?![^\W_])", "USER", text)
    return re.sub(rf"(?<![\w.-]){re.escape(socket.gethostname())}(?![\w-])", "HOST", text)


def _anonymous_texts(value: Any, work: Path, out: Path) -> Any:
    """The same JSON value with every text in it `_anonymous`."""
    if isinstance(value, str):
        return _anonymous(value, work, out)
    if isinstance(value, list):
        return [_anonymous_texts(each, work, out) for each in value]
    if isinstance(value, dict):
        return {name: _anonymous_texts(each, work, out) for name, each in value.items()}
    return value


def _name(report: Report) -> str:
    return REHEARSAL_NAME if report["rehearsal"] else NAME


def _written(report: Report, out: Path) -> tuple[Path, Path, Path]:
    """The JSON, the page and the zip of a report."""
    return out / "gpu.json", out / f"{_name(report)}.html", out / f"{_name(report)}.zip"


def write(report: Report, out: Path) -> None:
    """Write gpu.json, the page, and the zip with both and the logs, for the steps that have run so far."""
    from .page import as_html

    data, page, packed = _written(report, out)
    write_json(data, report)
    with atomic_write(page) as temporary:
        temporary.write_text(as_html(report), encoding="utf-8", errors="backslashreplace")
    with atomic_write(packed) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as file:
        logs = (_files(step["step"], out)[1] for step in report["steps"])
        for path in (data, page, *(log for log in logs if log.exists())):
            file.write(path, f"{packed.stem}/{path.relative_to(out)}")


def _settings(args: argparse.Namespace) -> Settings:
    if args.data is None and args.split != SPLIT:
        raise InputError(f"--split {args.split} without --data, expected a data set that has it")
    data = None
    if args.data is not None:
        open_data(args.data, args.split)
        data = str(Path(args.data).resolve())
    settings = REHEARSAL if args.rehearse else Settings(rehearsal=False)
    return dataclasses.replace(settings, data=data, split=args.split, flavour=args.engine)


def _card(settings: Settings) -> str | None:
    """The card to measure; None in a rehearsal. Raises BackendError if it, or the TensorRT asked for, is missing."""
    if settings.rehearsal:  # frames are so small that threads wait for each other, on a busy machine for seconds
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        return None
    try:
        card = str(find_gpu())
    except BackendError as error:
        raise BackendError(f"{error}; --rehearse runs the same on the CPU") from None
    if settings.flavour is not None:
        import_tensorrt(settings.flavour)
    return card


def _gpu(args: argparse.Namespace) -> None:
    from . import page as gpu_page  # now, so that a missing package is reported before the measurement

    unknown = [name for name in args.steps if name not in STEPS]
    if unknown:
        raise InputError(f"--steps {unknown[0]}, expected some of {', '.join(STEPS)}")
    if args.minutes == 0:
        raise InputError("--minutes 0, expected above 0: no step would start")
    settings = _settings(args)
    card = _card(settings)
    report: Report = {"schema": SCHEMA, "rehearsal": settings.rehearsal, "card": card, "environment": environment()}
    report["settings"] = dataclasses.asdict(settings) | {"data": args.data and Path(args.data).resolve().name}
    out = (args.out or Path(_name(report))).resolve()
    require_writable(out / "gpu.json")
    _, page, packed = written = _written(report, out)
    for path in (*written, *(path for name in STEPS for path in _files(name, out))):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # it is of an earlier run
    print("a rehearsal on the CPU: no figure is a GPU's" if settings.rehearsal else f"measuring {card}", flush=True)
    _measure(args, settings, report, out)
    use = "packed" if settings.rehearsal else "to send"
    print(f"{gpu_page.headline(report)}\nto look at: {page}\n{use}: {packed}")
    failed = [step["step"] for step in report["steps"] if step["state"] == FAILED]
    if failed:
        raise RequirementError(f"{', '.join(failed)} failed; the report says why, and {out / 'logs'} has more")


def _measure(args: argparse.Namespace, settings: Settings, report: Report, out: Path) -> None:
    """Run the steps and write the report. Raises KeyboardInterrupt that says where the unfinished report is."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        settings.write(work)
        try:
            for line in run_all(commands(args.steps, work, out, args.minutes), report, work, out, 60 * args.minutes):
                print(line, flush=True)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"what was found before is in {out}") from None
    write(report, out)


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.Parser(
        "python -m enet_deploy.benchmarks.gpu",
        description="Measure this machine's NVIDIA card in under ten minutes and write a report to send. Nothing is "
        "sent. Exit code 1 if something failed.",
    )
    parser.add_argument("--data", metavar="DATA", help="data set for accuracy and training (default: drawn scenes)")
    parser.add_argument("--split", default=SPLIT, help="of --data, for accuracy (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"default: {NAME}, of a rehearsal {REHEARSAL_NAME}")
    parser.add_argument("--engine", choices=FLAVOURS, help="TensorRT to measure (default: the first installed)")
    some = f"only some of {', '.join(STEPS)}"
    parser.add_argument("--steps", type=cli.listed(str), default=list(STEPS), metavar="LIST", help=some)
    minutes = "for all steps (%(default)s); with more, each step may take longer too"
    parser.add_argument("--minutes", type=cli.not_negative, default=MINUTES, metavar="N", help=minutes)
    parser.add_argument("--rehearse", action="store_true", help="run small frames on the CPU, to see that it works")
    return cli.run(parser, _gpu, argv)


if __name__ == "__main__":
    raise SystemExit(main())
