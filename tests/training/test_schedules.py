import math
import re
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, PolynomialLR, StepLR

from voxtile.errors import ConfigError
from voxtile.training.schedules import Constant, Cosine, Poly, Schedule, Step, parameter_groups

TOTAL = 50
SCHEDULES = [Constant, Poly, Cosine, lambda **options: Step(every=7, **options)]


def rates(make: type[LRScheduler], **options: float) -> list[float]:
    """The learning rates of torch's own scheduler, from 1."""
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer, **options)
    out = []
    for _ in range(TOTAL):
        out.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return out


def factors(schedule: Schedule, total: int = TOTAL) -> list[float]:
    return [schedule.factor(step, total) for step in range(total)]


def test_poly_is_that_of_torch() -> None:
    assert factors(Poly(power=0.9)) == pytest.approx(rates(PolynomialLR, total_iters=TOTAL, power=0.9))


def test_cosine_is_that_of_torch() -> None:
    assert factors(Cosine(floor=0.1)) == pytest.approx(rates(CosineAnnealingLR, T_max=TOTAL, eta_min=0.1))


def test_step_is_that_of_torch() -> None:
    assert factors(Step(every=7, gamma=0.5)) == pytest.approx(rates(StepLR, step_size=7, gamma=0.5))


def test_constant_is_one() -> None:
    assert factors(Constant()) == [1.0] * TOTAL


@pytest.mark.parametrize("make", SCHEDULES)
def test_warmup_rises_evenly_and_then_the_schedule_runs_over_the_rest(make) -> None:
    warm = factors(make(warmup=4))
    assert warm[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert warm[4:] == pytest.approx(factors(make(), TOTAL - 4))


@pytest.mark.parametrize("make", SCHEDULES)
def test_training_shorter_than_the_warmup_only_rises(make) -> None:
    assert factors(make(warmup=9), 3) == pytest.approx([0.1, 0.2, 0.3])


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(SCHEDULES), st.integers(0, 20), st.integers(0, 60), st.integers(0, 100))
def test_factor_is_within_zero_and_one_and_stays_after_the_end(make, warmup: int, total: int, step: int) -> None:
    schedule = make(warmup=warmup)
    assert 0 <= schedule.factor(step, total) <= 1
    end = max(total, warmup)
    assert schedule.factor(end + step, total) == schedule.factor(end, total)


@pytest.mark.parametrize("make", [Poly, Cosine])
def test_poly_and_cosine_end_at_zero(make) -> None:
    assert make().factor(TOTAL, TOTAL) == pytest.approx(0)
    assert make().factor(TOTAL - 1, TOTAL) > 0


@pytest.mark.parametrize(("make", "options"), [(Poly, {"warmup": -1}), (Step, {"every": 0})])
def test_counts_of_steps_that_make_no_sense_are_refused(make, options: dict) -> None:
    with pytest.raises(ConfigError, match="optimizer steps"):
        make(**options)


@pytest.mark.parametrize(
    ("make", "name", "wrong"),
    [
        (Poly, "power", (-1, math.nan, math.inf)),
        (Cosine, "floor", (-0.1, 1.1, math.nan)),
        (partial(Step, every=2), "gamma", (-1, 2, math.nan)),
    ],
)
def test_numbers_that_make_no_sense_are_refused(make: Callable[..., Schedule], name: str, wrong: Sequence[float]) -> None:
    for value in wrong:
        with pytest.raises(ConfigError, match=rf"`scheduler\.{name}` is {value}; give a number"):
            make(**{name: value})


def network() -> nn.Module:
    return nn.ModuleDict({"encoder": nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), "head": nn.Conv2d(4, 2, 1)})


def names(model: nn.Module, group: dict) -> list[str]:
    mine = {id(parameter) for parameter in group["params"]}
    return [name for name, parameter in model.named_parameters() if id(parameter) in mine]


def test_first_pattern_that_matches_wins_and_the_rest_keeps_the_defaults() -> None:
    model = network()
    groups = parameter_groups(
        model, [{"pattern": "^head", "lr_scale": 10}, {"pattern": r"bias$", "lr_scale": 2, "weight_decay": 0}], lr=0.01
    )
    assert [names(model, group) for group in groups] == [
        ["head.weight", "head.bias"],
        ["encoder.0.bias", "encoder.1.bias"],
        ["encoder.0.weight", "encoder.1.weight"],
    ]
    optimizer = SGD(groups, lr=0.01, weight_decay=5e-4)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1, 0.02, 0.01])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [5e-4, 0, 5e-4]
    assert [group["name"] for group in optimizer.param_groups] == ["^head", "bias$", "rest"]


def test_without_groups_all_parameters_are_in_one() -> None:
    (group,) = parameter_groups(network(), [], lr=0.01)
    assert len(group["params"]) == len(list(network().parameters()))


def test_no_group_is_empty_where_patterns_match_everything() -> None:
    assert [group["name"] for group in parameter_groups(network(), [{"pattern": "."}], lr=0.01)] == ["."]


def test_parameters_that_do_not_learn_are_in_no_group() -> None:
    model = network()
    model["encoder"].requires_grad_(False)
    (group,) = parameter_groups(model, [], lr=0.01)
    assert names(model, group) == ["head.weight", "head.bias"]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([{"pattern": "haed"}], r"matches none of the network's 6 parameters. Did you mean 'head'\? There are encoder.0.weight"),
        ([{"pattern": "head"}, {"pattern": "head.weight"}], "belongs to an earlier group"),
        ([{"pattern": "head("}], "no regular expression"),
        ([{"pattern": "head", "lr_scal": 10}], re.escape("Did you mean 'lr_scale'?")),
        ([{"lr_scale": 10}], "has no 'pattern'"),
        ([{"pattern": "head", "lr_scale": -1}], "The group 'head' of `training.groups` has lr_scale=-1"),
        ([{"pattern": "head", "lr_scale": math.nan}], "lr_scale=nan"),
        ([{"pattern": "head", "weight_decay": -1}], "weight_decay=-1"),
    ],
)
def test_groups_that_make_no_sense_are_refused(groups: list[dict], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parameter_groups(network(), groups, lr=0.01)
