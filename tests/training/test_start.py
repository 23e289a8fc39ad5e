"""What a run starts from: weights of other classes, slopes and widths, and a teacher."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import ROOM, assert_refused, enet_train, tensors

from enet_deploy.classes import CAMVID
from enet_deploy.commands import correct
from enet_deploy.commands import train as train_cli
from enet_deploy.data import DataSet
from enet_deploy.training.prior import load_uncorrected
from enet_deploy.training.recipe import Recipe
from enet_deploy.weights import load_weights, save_weights


@pytest.mark.slow
def test_init_continues_from_weights(finished: Path, scenes: Path, tmp_path: Path) -> None:
    start = finished / "last.safetensors"
    # at a rate of zero only the running statistics move
    assert enet_train(scenes, tmp_path, "--init", str(start), lr=0, ema=0, epochs=1) == 0
    net, metadata = load_weights(tmp_path / "last.safetensors")
    before, before_metadata = load_weights(start)
    for name, parameter in before.named_parameters():  # the last bias is rounded: its correction was taken back between
        torch.testing.assert_close(net.get_parameter(name), parameter, rtol=0, atol=1e-6 * (name == "fullconv.bias"))
    assert not torch.equal(net.initial.bn.running_mean, before.initial.bn.running_mean)
    assert (metadata.mean, metadata.std) == (before_metadata.mean, before_metadata.std)


@pytest.mark.slow
def test_weights_of_other_classes_give_all_but_their_last_layer(
    finished: Path, room: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start = finished / "last.safetensors"
    with caplog.at_level("INFO"):
        # at a rate of zero the parameters stay as they began
        assert enet_train(room, tmp_path, "--init", str(start), lr=0, ema=0, epochs=1) == 0
    assert f"{start} has other classes (sky, " in caplog.text
    net, metadata = load_weights(tmp_path / "last.safetensors")
    had, has = dict(load_weights(start)[0].named_parameters()), dict(net.named_parameters())
    assert {name for name in has if not torch.equal(has[name], had[name])} == {"fullconv.weight", "fullconv.bias"}
    assert net.num_classes == 3 and has["fullconv.weight"].any() and metadata.classes.names == tuple(ROOM["names"])


@pytest.mark.slow
def test_weights_of_recipes_with_options_that_are_gone(scenes: Path, finished: Path, tmp_path: Path) -> None:
    """The metadata says how they were trained, also with options that this version does not have."""
    net, metadata = load_weights(finished / "last.safetensors")
    recipe = metadata.details["recipe"] | {"ohem": 0.7, "rare": 0.5}
    start = tmp_path / "old.safetensors"
    save_weights(start, net, dataclasses.replace(metadata, details=metadata.details | {"recipe": recipe}))
    assert enet_train(scenes, tmp_path / "run", "--init", str(start), "--teacher", str(start), epochs=1) == 0
    details = load_weights(tmp_path / "run" / "last.safetensors")[1].details
    assert details["init"]["recipe"]["ohem"] == details["teacher"]["recipe"]["ohem"] == 0.7


LOSSES = ["--aux", "0.4", "--lovasz", "1", "--lovasz-from", "0", "--noise", "8"]


@pytest.mark.slow
def test_every_loss_at_once_still_gives_the_plain_network(
    finished: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wider teacher, a second head, Lovasz: what is saved is ENet, and a resumed run needs the same teacher."""
    assert enet_train(scenes, tmp_path / "wide", "--width", "2", epochs=1) == 0
    teacher = tmp_path / "wide" / "last.safetensors"
    assert load_weights(teacher)[0].width == 2
    assert enet_train(scenes, tmp_path / "run", *LOSSES, "--teacher", str(teacher), epochs=1) == 0
    net, metadata = load_weights(tmp_path / "run" / "last.safetensors")
    assert net.width == 1 and net.state_dict().keys() == tensors(finished / "last.safetensors").keys()
    assert metadata.details["teacher"]["width"] == 2
    code = enet_train(scenes, tmp_path / "taught nothing", "--teacher", str(teacher), distill=0)
    assert_refused(code, capsys, "distill 0", "--teacher")
    assert metadata.details["recipe"]["lovasz"] == 1.0


def test_correction_is_saved_and_undone(finished: Path) -> None:
    net, metadata = load_weights(finished / "last.safetensors")
    had = metadata.details["prior_correction"]
    assert had["alpha"] == Recipe().prior_correction
    plain, other = load_uncorrected(finished / "last.safetensors")
    shift = had["alpha"] * torch.tensor(had["class_weights"]).log()
    torch.testing.assert_close(plain.fullconv.bias, net.fullconv.bias + shift)
    assert "prior_correction" not in other.details
    state = torch.load(finished / "checkpoint.pt", weights_only=True)
    torch.testing.assert_close(plain.fullconv.bias.data, state["ema"]["fullconv.bias"])


@pytest.mark.slow
def test_another_correction_for_some_classes(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, out, again = finished / "last.safetensors", tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    assert correct.main([str(weights), "--alpha", "1", "--of", "pole=0.25", "--of", "sign=0", "--out", str(out)]) == 0
    plain, metadata = load_uncorrected(weights)
    log = torch.tensor(load_weights(weights)[1].details["prior_correction"]["class_weights"]).log()
    shift = torch.tensor([{"pole": 0.25, "sign": 0.0}.get(name, 1.0) for name in metadata.classes.names]) * log
    torch.testing.assert_close(load_weights(out)[0].fullconv.bias, plain.fullconv.bias - shift)
    assert correct.main([str(out), "--out", str(again)]) == 0  # undoes it before
    torch.testing.assert_close(tensors(again), tensors(weights))
    assert "val_miou" in metadata.details["figures"] and "loss" in load_weights(out)[1].details["figures"]
    assert "val_miou" not in load_weights(out)[1].details["figures"]  # it is of the correction before
    assert correct.main([str(out), "--out", str(out)]) == 2
    assert correct.main([str(out), "--out", str(tmp_path / "d")]) == 2 and not (tmp_path / "d").exists()
    net, own = load_weights(weights)
    save_weights(out, net, dataclasses.replace(own, details=own.details | {"figures": "none"}))
    assert correct.main([str(out), "--out", str(again)]) == 0
    capsys.readouterr()
    for options, value in (
        (["--of", "poles=1"], "'poles'"), (["--alpha", "-1"], "'-1'"), (["--of", "pole"], "'pole'"),
        (["--of", "pole=1", "--of", "pole=0"], "each class once"),
    ):  # fmt: skip
        with contextlib.suppress(SystemExit):
            assert correct.main([str(weights), *options, "--out", str(tmp_path / "c.safetensors")]) == 2
        assert value in capsys.readouterr().err
    plain_file = tmp_path / "plain.safetensors"
    save_weights(plain_file, plain, metadata)
    assert correct.main([str(plain_file), "--out", str(out)]) == 2
    assert "plain.safetensors does not say which class weights" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "broken",
    ["0.5", {"alpha": 0.5}, {"alpha": "x", "class_weights": [1.0] * 11}, {"alpha": 0.5, "class_weights": [1.0, 2.0]},
     {"alpha": 10**400, "class_weights": [1.0] * 11}, {"alpha": 0.5, "class_weights": [0.0] * 11},
     {"alpha": 0.5, "class_weights": None}, {"alpha": [0.5] * 3, "class_weights": [1.0] * 11}],
)  # fmt: skip
def test_weights_with_a_foreign_correction_are_refused(
    finished: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], broken: Any
) -> None:
    net, metadata = load_weights(finished / "last.safetensors")
    details = metadata.details | {"prior_correction": broken}
    save_weights(tmp_path / "w.safetensors", net, dataclasses.replace(metadata, details=details))
    code = enet_train(scenes, tmp_path / "out", "--init", str(tmp_path / "w.safetensors"))
    assert_refused(code, capsys, "w.safetensors", "prior_correction")


@pytest.mark.slow
def test_slopes_per_channel_become_one_per_layer_and_not_the_other_way(
    finished: Path,
    scenes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert load_weights(finished / "last.safetensors")[0].slopes == "layer"
    assert enet_train(scenes, tmp_path / "channel", "--slopes", "channel", epochs=1) == 0
    net, _ = load_weights(tmp_path / "channel" / "last.safetensors")
    assert net.slopes == "channel" and net.initial.act.weight.shape == (16,)
    options = ("--init", str(tmp_path / "channel" / "last.safetensors"))
    with caplog.at_level("INFO"):
        assert enet_train(scenes, tmp_path / "layer", *options, "--lr", "0", epochs=1) == 0
    assert "has a PReLU slope per channel" in caplog.text
    shared, _ = load_weights(tmp_path / "layer" / "last.safetensors")
    torch.testing.assert_close(shared.initial.act.weight, net.initial.act.weight.mean()[None])
    options = ("--slopes", "channel", "--init", str(finished / "last.safetensors"))
    code = enet_train(scenes, tmp_path / "back", *options)
    assert_refused(code, capsys, "slopes channel", "last.safetensors", "--slopes layer")


def test_weights_of_another_width_are_refused(
    finished: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = enet_train(scenes, tmp_path, "--width", "2", "--init", str(finished / "last.safetensors"))
    assert_refused(code, capsys, "width 2", "last.safetensors", "--width 1")


@pytest.mark.slow
def test_teachers_and_runs_of_other_classes_are_refused_before_an_image_is_read(
    finished: Path,
    room: Path,
    scenes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(DataSet, "__getitem__", lambda *_: pytest.fail("an image was read"))
    code = enet_train(room, tmp_path, "--teacher", str(finished / "last.safetensors"))
    assert_refused(code, capsys, "sky, ", "floor, wall, door")
    out = str(shutil.copytree(finished, tmp_path / "run"))  # one process at a time works in a run's folder
    code = train_cli.main([str(room), "--out", out, "--resume"])
    assert_refused(
        code,
        capsys,
        "checkpoint.pt",
        "classes sky, ",
        "floor, wall, door",
    )
    swapped = shutil.copytree(scenes, tmp_path / "swapped")
    names = [CAMVID.names[1], CAMVID.names[0], *CAMVID.names[2:], None]
    values = {"label_values": {str(id_): name for id_, name in enumerate(names)}}
    (swapped / "classes.json").write_text(json.dumps(CAMVID.to_json() | values))
    code = train_cli.main([str(swapped), "--out", out, "--resume"])
    assert_refused(code, capsys, "checkpoint.pt", "values of classes in label maps")
