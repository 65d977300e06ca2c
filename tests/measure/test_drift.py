"""Drift between weights and an anchor, against rotations and scalings."""

from __future__ import annotations

import csv
import io
import math

import pytest
import torch
from torch import nn

from mooring.finetune.drift import metrics, to_csv
from mooring.measure import drift, weight_norm


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def test_distances_are_norms_of_differences_and_buffers_do_not_count() -> None:
    model = net()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        model[0].weight.add_(1)  # type: ignore[index]
        model[1].running_mean.add_(100)  # type: ignore[index]
    found = drift(model, start)
    rows = {row.name: row for row in found.layers}
    assert list(rows) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert rows["0.weight"].distance == pytest.approx(math.sqrt(6), rel=1e-6)  # of float32 weights
    assert rows["0.weight"].relative == pytest.approx(math.sqrt(6) / start["0.weight"].norm().item(), rel=1e-6)
    assert rows["0.weight"].norm == pytest.approx(model[0].weight.norm().item())  # type: ignore[index]
    assert rows["1.bias"].distance == 0 and math.isnan(rows["1.bias"].relative) and math.isnan(rows["1.bias"].angle)
    assert found.total.distance == pytest.approx(math.sqrt(6), rel=1e-6) and found.total.size == 12
    assert found.total.norm == pytest.approx(weight_norm(model))
    flat, origin = (torch.cat([v[k].flatten() for k in rows]).double() for v in (model.state_dict(), start))
    cosine = float(flat @ origin / flat.norm() / origin.norm())
    assert found.total.angle == pytest.approx(math.acos(cosine))
    assert drift(model.state_dict(), start) == found


@pytest.mark.parametrize("angle", [1e-12, 1e-9, 1e-4, 1.0, math.pi / 2, 3.0, math.pi - 1e-9])
def test_a_rotation_drifts_by_its_angle_whatever_the_scale(angle: float) -> None:
    """Where ``acos`` of the cosine would know nothing: at 1e-9 it is off by 1e-8."""
    a = torch.tensor([math.cos(0.3), math.sin(0.3)], dtype=torch.float64)
    w = 7 * torch.tensor([math.cos(0.3 + angle), math.sin(0.3 + angle)], dtype=torch.float64)
    row = drift({"w": w}, {"w": 0.1 * a}).layers[0]
    assert row.angle == pytest.approx(angle, abs=3e-16, rel=1e-14)
    assert drift({"w": 5 * a}, {"w": a}).layers[0].angle < 1e-15
    assert drift({"w": 5 * a}, {"w": a}).layers[0].relative == pytest.approx(4)


def test_names_shapes_and_what_is_missing() -> None:
    weights = {"module.w": torch.ones(2), "head": torch.ones(3), "n": torch.tensor(3)}
    with pytest.raises(ValueError, match="the anchor has no 'head'; skip_missing=True"):
        drift(weights, {"w": torch.ones(2)})
    found = drift(weights, {"w": torch.zeros(2)}, skip_missing=True)
    assert [row.name for row in found.layers] == ["module.w"] and found.missing == ("head",)
    with pytest.raises(ValueError, match=r"'w' has shape \(2,\), its anchor has shape \(1, 2\)"):
        drift({"w": torch.ones(2)}, {"w": torch.ones(1, 2)})
    with pytest.raises(ValueError, match="the anchor has none of the parameters"):
        drift({"w": torch.ones(2)}, {"v": torch.ones(2)}, skip_missing=True)


def test_what_a_trial_writes() -> None:
    found = drift({"w": torch.tensor([3.0, 4.0])}, {"w": torch.tensor([3.0, 0.0])})
    assert metrics(found) == {"drift/l2": 4.0, "drift/relative": 4 / 3}
    [row] = csv.DictReader(io.StringIO(to_csv(found)))
    assert row["name"] == "w" and float(row["norm0"]) == 3 and float(row["drift_l2"]) == 4
    assert float(row["drift_angle"]) == pytest.approx(math.atan2(4, 3))
