"""Steps about the machine: the card, its rates for copies, products and launches, and the times that they predict."""

from __future__ import annotations

import itertools
import json
import subprocess
import time
from collections.abc import Callable
from functools import partial

from enet_deploy.errors import BackendError

from .contract import NotHere
from .session import Session, in_words

# Rates that the estimate needs
COPY = "copy inside the device, read and written"
PRODUCT = "matrix product, "
IN_GRAPH = "one small kernel of a CUDA graph"

SMI = (
    "name", "driver_version", "memory.total", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.draw", "power.limit",
    "temperature.gpu",
)  # fmt: skip


def facts(session: Session) -> None:
    """The card, the versions of what can use it, and its best rates."""
    from enet_deploy.runners.tensorrt.cuda import find_gpu, open_device
    from enet_deploy.runners.tensorrt.library import FLAVOURS, import_tensorrt

    note_smi(session, "at the start")
    with session.findings.attempt("machine", what="CUDA device") as note:
        session.require_card()
        with open_device() as device:
            note(value=f"{find_gpu()}, through {device.package}")
    for flavour in FLAVOURS:
        with session.findings.attempt("machine", what=f"engine '{flavour}'") as note:
            try:
                note(value=import_tensorrt(flavour).__version__)
            except BackendError as error:
                raise NotHere(str(error)) from None
    session.require("torch")
    import torch

    with session.findings.attempt("machine", what="PyTorch") as note:
        cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        note(value=f"{torch.__version__}, CUDA {torch.version.cuda}, cuDNN {cudnn}")
    _rates(session)


def note_smi(session: Session, when: str) -> None:
    """Note what the driver's own tool says: which card, how fast its clocks are, how hot it is."""
    with session.findings.attempt("machine", what=f"nvidia-smi {when}") as note:
        command = ["nvidia-smi", f"--query-gpu={','.join(SMI)}", "--format=csv,noheader"]
        try:
            done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=20)
        except OSError:  # a Jetson may have none
            raise NotHere("there is no nvidia-smi") from None
        if done.returncode:
            raise NotHere(done.stdout or done.stderr)
        # all cards, because it numbers them by bus, and CUDA by speed
        cards = [zip(SMI, line.split(", "), strict=False) for line in done.stdout.splitlines()]
        note(value="; ".join(", ".join(f"{name} {value}" for name, value in card) for card in cards))


def _rates(session: Session) -> None:
    """Measure copies, matrix products and launches. An estimate of a network's time starts from these."""
    import torch

    device, rehearsal = session.settings.device, session.settings.rehearsal
    size, side = (2**22, 256) if rehearsal else (2**28, 4096)
    here, there = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    host = torch.zeros(size, dtype=torch.uint8, pin_memory=not rehearsal)

    def seconds(call: Callable[[], object]) -> float:
        return seconds_per_call(call, session.wait, session.settings.seconds)

    def rate(what: str, call: Callable[[], object], work: float, unit: str) -> None:
        with session.findings.attempt("rates", what=what) as note:
            note(rate=work / seconds(call), unit=unit)

    rate(COPY, lambda: there.copy_(here), 2 * size / 1e9, "GB/s")
    rate("copy to the device, pinned", lambda: here.copy_(host, non_blocking=True), size / 1e9, "GB/s")
    rate("copy to the host, pinned", lambda: host.copy_(here, non_blocking=True), size / 1e9, "GB/s")
    for dtype in (torch.float32, torch.float16):
        a = torch.ones(side, side, device=device, dtype=dtype)
        rate(PRODUCT + str(dtype)[6:], partial(torch.mm, a, a), 2 * side**3 / 1e12, "TFLOP/s")
    tiny = torch.zeros(1, device=device)
    with session.findings.attempt("rates", what="one small operation of eager PyTorch") as note:
        note(rate=1e6 * seconds(lambda: tiny.add_(1)), unit="us")
    with session.findings.attempt("rates", what=IN_GRAPH) as note:
        graph = session.captured(lambda: [tiny.add_(1) for _ in range(500)])
        note(rate=1e6 * seconds(graph) / 500, unit="us")


def seconds_per_call(call: Callable[[], object], wait: Callable[[], None], seconds: float) -> float:
    """Seconds of one of many calls that are queued one after the other, as many as take about `seconds`."""

    def took(count: int) -> float:
        begun = time.perf_counter()
        for _ in range(count):
            call()
        wait()
        return time.perf_counter() - begun

    took(1)  # libraries load at the first call
    count = max(1, round(seconds / took(1)))  # a number, not a time limit: a host can queue minutes of work
    return took(count) / count


def estimate(session: Session) -> None:
    """The work of the network, and the time that it would take at the rates of `facts`. Not a measurement."""
    from ..measure.profiling import expected_seconds, kernels

    facts = session.findings.path.with_name("facts.json")
    rows = json.loads(facts.read_text(encoding="utf-8"))["findings"] if facts.exists() else []
    known = {row["what"]: row.get("rate") for row in rows if row["table"] == "rates"}
    size = session.settings.sizes[0]
    for (precision, dtype), merged in itertools.product((("fp32", "float32"), ("fp16", "float16")), (True, False)):
        work = kernels(session.graph(precision, size), merged)
        shown = {"precision": precision, "size": in_words(size), "merged": "all that can be" if merged else "nothing"}
        with session.findings.attempt("estimate", **shown) as note:
            macs = sum(kernel.multiply_adds for kernel in work)
            note(kernels=len(work), gflop=2 * macs / 1e9, mb=sum(kernel.bytes for kernel in work) / 1e6)
            needed = [known[what] for what in (COPY, PRODUCT + dtype, IN_GRAPH) if known.get(what)]
            if len(needed) < 3:
                raise NotHere("the rates of this machine are not all known")
            bandwidth, flops, launch = needed
            note(least_ms=1e3 * expected_seconds(work, 1e9 * bandwidth, 1e12 * flops, 1e-6 * launch))
