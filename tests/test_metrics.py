"""The scores, against numbers worked out by hand and against scikit-learn."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from enet_deploy.classes import CAMVID, ClassList
from enet_deploy.errors import InputError
from enet_deploy.metrics import ConfusionMatrix, evaluate

A, B, C, VOID = 0, 1, 2, 3
ABC = ClassList(("a", "b", "c"), ((0, 0, 0), (1, 1, 1), (2, 2, 2)), VOID)


def counted(*pairs: tuple[list[int], list[int]], classes: ClassList = ABC) -> ConfusionMatrix:
    confusion = ConfusionMatrix(classes)
    for truth, prediction in pairs:
        confusion.update(np.array(truth, np.uint8), np.array(prediction, np.uint8))
    return confusion


# One void pixel, predicted as b
TRUTH = [A, A, A, A, B, B, C, VOID]
PREDICTION = [A, A, A, B, B, B, B, B]


def test_void_is_left_out() -> None:
    """
    a: TP 3, FN 1 (taken for b), FP 0        IoU 3/4        Dice 6/7        recall 3/4
    b: TP 2, FN 0, FP 2 (an a and the c)     IoU 2/4        Dice 4/6        recall 2/2
    c: TP 0, FN 1, FP 0                      IoU 0          Dice 0          recall 0
    """
    scores = counted((TRUTH, PREDICTION)).scores()
    assert scores.pixel_accuracy == pytest.approx(5 / 7)  # 3 + 2 of the seven labelled pixels
    assert scores.miou == pytest.approx((3 / 4 + 2 / 4 + 0) / 3)
    assert scores.dice == pytest.approx((6 / 7 + 4 / 6 + 0) / 3)
    assert scores.class_average == pytest.approx((3 / 4 + 1 + 0) / 3)
    assert scores.per_class["a"] == pytest.approx({"iou": 3 / 4, "dice": 6 / 7, "precision": 1, "recall": 3 / 4})
    assert scores.per_class["b"] == pytest.approx({"iou": 2 / 4, "dice": 4 / 6, "precision": 2 / 4, "recall": 1})
    assert scores.per_class["c"] == {"iou": 0, "dice": 0, "precision": None, "recall": 0}
    assert scores.absent == () and scores.void_counts is False


def test_void_counts_as_a_mistake_on_request() -> None:
    """As above, but the void pixel is one more FP of b: IoU 2/5, Dice 4/7. Recall has no FP in it and stays."""
    confusion = counted((TRUTH, PREDICTION))
    scores = confusion.scores(void_counts=True)
    assert scores.pixel_accuracy == pytest.approx(5 / 8)
    assert scores.miou == pytest.approx((3 / 4 + 2 / 5 + 0) / 3)
    assert scores.dice == pytest.approx((6 / 7 + 4 / 7 + 0) / 3)
    assert scores.class_average == confusion.scores().class_average
    assert scores.void_counts is True


@pytest.mark.parametrize("void_id", [VOID, 200])
def test_predicted_void_is_a_miss(void_id: int) -> None:
    """a: TP 1, FN 1 (no class at all, so no FP anywhere): IoU 1/2. b: TP 1: IoU 1. Any id without a class is void."""
    scores = counted(([A, A, B], [A, void_id, B])).scores()
    assert scores.pixel_accuracy == pytest.approx(2 / 3)
    assert scores.miou == pytest.approx((1 / 2 + 1) / 2)
    assert scores.dice == pytest.approx((2 / 3 + 1) / 2)
    assert scores.absent == ("c",)


def test_absent_class_is_named_and_left_out_of_the_means() -> None:
    scores = counted(([A, A, VOID], [A, A, C])).scores()  # c only where truth is void, b nowhere
    assert scores.absent == ("b", "c")
    assert scores.per_class["b"] == scores.per_class["c"] == dict.fromkeys(("iou", "dice", "precision", "recall"))
    assert scores.pixel_accuracy == scores.miou == scores.dice == scores.class_average == 1


def test_class_that_is_only_predicted_is_present_but_has_no_recall() -> None:
    """a: TP 1, FN 1: IoU 1/2, recall 1/2. b: FP 1: IoU 0; it is not in truth, so the class average is a's alone."""
    scores = counted(([A, A], [A, B])).scores()
    assert scores.absent == ("c",)
    assert scores.miou == pytest.approx((1 / 2 + 0) / 2)
    assert scores.class_average == pytest.approx(1 / 2)
    assert scores.per_class["b"] == {"iou": 0, "dice": 0, "precision": 0, "recall": None}


def test_pixels_are_summed_over_the_data_set_not_averaged_over_images() -> None:
    first, second = ([A] * 9 + [B], [A] * 10), ([B], [B])
    # a: TP 9, FP 1: 9/10. b: TP 1, FN 1: 1/2.
    assert counted(first, second).scores().miou == pytest.approx((9 / 10 + 1 / 2) / 2)
    # per image: (9/10 + 0)/2 and 1
    per_image = [counted(pair).scores().miou for pair in (first, second)]
    assert per_image == pytest.approx([0.45, 1.0])
    assert counted(first, second).scores().pixel_accuracy == pytest.approx(10 / 11)


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.uint8, (2, 40), elements=st.integers(0, len(CAMVID))), st.booleans())
def test_agrees_with_scikit_learn(maps: np.ndarray, void_counts: bool) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    truth, prediction = maps
    assume((truth < len(CAMVID)).any())
    confusion = ConfusionMatrix(CAMVID)
    confusion.update(truth.reshape(5, 8), prediction.reshape(5, 8))
    scores = confusion.scores(void_counts)

    void = truth == len(CAMVID)
    truth = np.where(void, 99, truth)  # scikit-learn has no void: an id that is never predicted is never right
    if not void_counts:
        truth, prediction = truth[~void], prediction[~void]
    ids = np.arange(len(CAMVID))
    present = ids[np.isin(ids, truth) | np.isin(ids, prediction)]

    def macro(figure: str, labels: np.ndarray) -> float:
        return float(getattr(metrics, figure)(truth, prediction, labels=labels, average="macro", zero_division=0))

    assert scores.pixel_accuracy == pytest.approx(metrics.accuracy_score(truth, prediction))
    assert scores.miou == pytest.approx(macro("jaccard_score", present))
    assert scores.dice == pytest.approx(macro("f1_score", present))
    assert scores.class_average == pytest.approx(macro("recall_score", ids[np.isin(ids, truth)]))
    assert scores.absent == tuple(CAMVID.names[i] for i in ids if i not in present)


def test_refusals() -> None:
    confusion = ConfusionMatrix(ABC)
    with pytest.raises(InputError, match=r"prediction of shape \(2, 3\) for labels of \(3, 2\), expected the same"):
        confusion.update(np.zeros((3, 2), np.uint8), np.zeros((2, 3), np.uint8))
    for _ in range(2):
        with pytest.raises(InputError, match="every counted pixel is void"):
            confusion.scores()
        confusion.update(np.full((2, 2), VOID, np.uint8), np.zeros((2, 2), np.uint8))  # void alone is not enough


def test_json_holds_every_figure() -> None:
    scores = counted((TRUTH, PREDICTION)).scores()
    value = json.loads(json.dumps(scores.to_json()))
    assert value == vars(scores) | {"absent": []}


def test_evaluate_counts_every_pixel_of_every_pair() -> None:
    maps = [np.full((2, 3), A, np.uint8), np.full((4, 5), B, np.uint8)]
    pairs = [(np.dstack([labels] * 3), labels) for labels in maps]
    confusion = evaluate(lambda image: np.minimum(image[..., 0], A), pairs, ABC)  # all is a
    assert confusion.counts[A, A] == 6 and confusion.counts[B, A] == 20 and confusion.counts.sum() == 26
