import itertools
import json
import math
from pathlib import Path

import hydra.utils
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from tests.testers.memory import memory_case, north_up
from voxtile.cases.grid import plain_affine
from voxtile.data.blocks import BlockSplit
from voxtile.data.splits import FileSplit, GivenSplit, GroupSplit, KFold
from voxtile.errors import ConfigError, DataError

CONF = Path(__file__).parents[2] / "conf" / "split"
few = settings(max_examples=30, deadline=None)


def scans(count, per_group=2):
    return [memory_case(f"s{number:03d}", group=f"p{number // per_group:03d}") for number in range(count * per_group)]


def ids(cases):
    return [case.id for case in cases]


def groups(cases):
    return {case.group for case in cases}


def sides(split):
    return {case.group: side for side, cases in split.sides.items() for case in cases}


# --- by group


@few
@given(st.integers(3, 60), st.integers(1, 3), st.integers(0, 5))
def test_every_case_is_on_one_side_with_its_group(count, per_group, seed):
    cases = scans(count, per_group)
    split = GroupSplit(val=0.3, test=0.2, seed=seed)(cases)
    assert sorted(ids(split.train) + ids(split.val) + ids(split.test)) == ids(cases)
    parts = [groups(part) for part in split.sides.values()]
    assert sum(len(part) for part in parts) == len(set.union(*parts)) == count
    assert abs(len(parts[1]) - 0.3 * count) <= 1
    assert abs(len(parts[2]) - 0.2 * count) <= 1


@few
@given(st.integers(3, 60), st.integers(0, 5), st.floats(0.05, 0.5), st.floats(0.05, 0.45), st.text("xyz", min_size=1, max_size=5))
def test_one_more_group_moves_at_most_one_over_each_boundary(count, seed, val, test, name):
    scheme, cases = GroupSplit(val, test, seed), scans(count, 1)
    before, after = sides(scheme(cases)), sides(scheme([*cases, memory_case(name)]))
    moves = [{before[group], after[group]} for group in before if before[group] != after[group]]
    assert {"train", "test"} not in moves
    assert all(moves.count(move) <= 1 for move in moves)


def test_the_order_of_cases_and_another_one_in_a_group_change_nothing():
    cases = scans(9)
    split = GroupSplit()(cases)
    assert GroupSplit()(cases[::-1]).digest == split.digest
    assert sides(GroupSplit()([*cases, memory_case("late", group="p003")])) == sides(split)


def test_the_split_is_the_same_on_every_machine():
    split = GroupSplit(0.25, 0.25, seed=7)(scans(8, 1))
    assert (ids(split.val), ids(split.test)) == (["s004", "s005"], ["s002", "s007"])


def test_seeds_differ_and_shares_of_validation_leave_test_alone():
    cases = scans(40)
    test = [groups(GroupSplit(val=val, test=0.2, seed=0)(cases).test) for val in (0.05, 0.2, 0.7)]
    assert test[0] == test[1] == test[2]
    assert test[0] == groups(KFold(folds=4, fold=2, test=0.2, seed=0)(cases).test)
    assert test[0] != groups(GroupSplit(test=0.2, seed=1)(cases).test)


def test_no_test_split_on_request():
    split = GroupSplit(val=0.5, test=0)(scans(2))
    assert (len(split.train), len(split.val), split.test) == (2, 2, ())


def test_too_few_groups_are_an_error_that_says_how_many():
    with pytest.raises(ConfigError, match=r"2 groups \(p00., p00.\).*at least 3.*split.test=0"):
        GroupSplit()(scans(2))
    with pytest.raises(ConfigError, match="0 groups"):
        GroupSplit()([])


@pytest.mark.parametrize(("val", "test"), [(0.0, 0.2), (1.0, 0.0), (0.6, 0.4), (0.2, -0.1)])
def test_shares_that_leave_nothing_are_an_error(val, test):
    with pytest.raises(ConfigError, match=r"split\.(val|test)="):
        GroupSplit(val, test)


@few
@given(st.lists(st.integers(0, 1000), min_size=12, max_size=60), st.integers(0, 5), st.sampled_from([0.0, 0.25]))
def test_strata_balance_the_foreground_of_what_is_not_test(foreground, seed, test):
    cases = [memory_case(f"c{number:02d}") for number in range(len(foreground))]
    # What counts is the share: the emptiest cases have the most pixels.
    shares = {case.id: np.array([1000 - share, share]) * (1001 - share) for case, share in zip(cases, foreground, strict=True)}
    scheme = GroupSplit(val=0.25, test=test, seed=seed, stratify=True)
    open_ones = {case.id: shares[case.id] for case in scheme.readable(cases)}
    split = scheme(cases, open_ones)  # the shares of test cases are not there
    assert split.test == GroupSplit(val=0.25, test=test, seed=seed)(cases).test
    rest = [*split.train, *split.val]
    assert {case.id for case in rest} == open_ones.keys()
    part = 0.25 / (1 - test)
    strata = min(5, len(rest) // math.ceil(1 / part))
    by_share = {case.id: share for case, share in zip(cases, foreground, strict=True)}
    order = sorted(by_share[case.id] for case in rest)
    # Every stratum is dealt out on its own: the share comes out right, and validation has a case of the emptiest and one of
    # the fullest.
    assert abs(len(split.val) - len(rest) * part) <= 1
    levels = [by_share[case.id] for case in split.val]
    assert min(levels) <= order[len(order) // strata]
    assert max(levels) >= order[(strata - 1) * len(order) // strata - 1]


def test_stratified_folds_cover_every_group_once_and_share_the_foreground():
    cases = scans(40)
    shares = {case.id: [100, 900 if case.group < "p008" else 0, 0] for case in cases}
    full = []
    for fold in range(4):
        split = KFold(folds=4, fold=fold, stratify=True)(cases, shares)
        full.append(sum(group < "p008" for group in groups(split.val)))
    assert full == [2, 2, 2, 2]


@pytest.mark.parametrize(("count", "folds", "test"), [(30, 5, 0.0), (29, 10, 0.0), (60, 6, 0.3), (23, 3, 0.0), (11, 7, 0.0)])
def test_stratified_folds_differ_by_one_group_at_most(count, folds, test):
    cases = scans(count, 1)
    shares = {case.id: [100, int(case.id[1:])] for case in cases}
    splits = [KFold(folds, fold, test=test, stratify=True)(cases, shares) for fold in range(folds)]
    sizes = [len(split.val) for split in splits]
    assert max(sizes) - min(sizes) <= 1
    rest = sorted(ids([*splits[0].train, *splits[0].val]))  # by their foreground
    strata = min(5, len(rest) // folds)
    for edge in range(strata):
        stratum = set(rest[edge * len(rest) // strata : (edge + 1) * len(rest) // strata])
        shared = [len(stratum & set(ids(split.val))) for split in splits]
        assert max(shared) - min(shared) <= 1


@pytest.mark.parametrize(("count", "folds"), [(7, 4), (9, 5), (13, 7)])
def test_folds_of_one_stratum_are_those_without_strata(count, folds):
    cases = scans(count, 1)
    shares = {case.id: [100, int(case.id[1:])] for case in cases}
    for fold in range(folds):
        assert KFold(folds, fold, stratify=True)(cases, shares) == KFold(folds, fold)(cases)


def test_strata_need_the_labels():
    assert GroupSplit(stratify=True).needs_counts
    assert not GroupSplit().needs_counts
    with pytest.raises(ConfigError, match=r"s000.*split\.stratify=false"):
        GroupSplit(stratify=True)(scans(9))


# --- folds


@few
@given(st.integers(7, 40), st.integers(2, 5), st.integers(0, 3), st.sampled_from([0.0, 0.2]), st.booleans())
def test_every_group_is_validated_once_and_test_groups_never(count, folds, seed, test, stratify):
    cases = scans(count)
    shares = {case.id: [10, int(case.id[1:])] for case in cases}
    splits = [KFold(folds, fold, seed, test, stratify)(cases, shares) for fold in range(folds)]
    locked = groups(splits[0].test)
    assert bool(locked) == bool(test)
    validated = [group for split in splits for group in groups(split.val)]
    assert sorted(validated) == sorted(groups(cases) - locked)
    for split in splits:
        assert groups(split.test) == locked
        assert groups(split.train) == groups(cases) - locked - groups(split.val)


@few
@given(st.integers(6, 40), st.integers(0, 4), st.text("xyz", min_size=1, max_size=5))
def test_one_more_group_moves_at_most_one_over_each_edge_of_a_fold(count, fold, name):
    scheme, cases = KFold(5, fold), scans(count, 1)
    before, after = sides(scheme(cases)), sides(scheme([*cases, memory_case(name)]))
    assert sum(before[group] != after[group] for group in before) <= 2


def test_folds_that_do_not_exist_or_stay_empty_are_an_error():
    with pytest.raises(ConfigError, match=r"fold=5"):
        KFold(folds=5, fold=5)
    with pytest.raises(ConfigError, match=r"6 cases in 3 groups leave 3 .*split\.folds=3"):
        KFold(folds=5)(scans(3))


# --- given


def given_cases(**counts):
    return [memory_case(f"{side}{n}", group=f"{side}{n // 2}", split=side) for side, count in counts.items() for n in range(count)]


def test_the_data_sets_own_split_is_kept():
    split = GivenSplit()(given_cases(test=1, train=3, val=2))
    assert {side: ids(cases) for side, cases in split.sides.items()} == {
        "train": ["train0", "train1", "train2"],
        "val": ["val0", "val1"],
        "test": ["test0"],
    }


def test_validation_is_carved_out_of_training_by_group():
    split = GivenSplit(val=0.4)(given_cases(train=10, test=2))
    assert len(groups(split.val)) == 2
    assert len(groups(split.train)) == 3
    assert not groups(split.val) & groups(split.train)
    assert ids(split.test) == ["test0", "test1"]


def test_a_split_that_is_not_given_is_an_error():
    with pytest.raises(DataError, match=r"1 of 3 cases: lost.*split=groups"):
        GivenSplit()([*given_cases(train=1, val=1), memory_case("lost")])
    with pytest.raises(DataError, match=r"'val': 4 cases in 3 groups became 3 train, 0 val, 1 test.*split\.val=0\.2"):
        GivenSplit()(given_cases(train=3, test=1))
    with pytest.raises(DataError, match="nothing for 'train'"):
        GivenSplit()(given_cases(val=3))
    with pytest.raises(DataError, match=r"traim; expected.*Did you mean 'train'"):
        GivenSplit()(given_cases(traim=1, val=1))
    with pytest.raises(ConfigError, match="gives 2 validation cases"):
        GivenSplit(val=0.1)(given_cases(train=3, val=2))


# --- from a file


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / "splits_final.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return write


def test_a_fold_of_nnunets_file_is_read_and_what_is_left_out_is_said(write):
    file = write([{"train": ["s000", "s001"], "val": ["s002"]}, {"train": ["s002", "s001"], "val": ["s000"]}])
    split = FileSplit(file, fold=1)(scans(4, 1))
    assert (ids(split.train), ids(split.val), split.test, split.left_out) == (["s001", "s002"], ["s000"], (), ("s003",))


def test_one_split_with_test_is_read(write):
    marked = "\ufeff" + json.dumps({"train": ["s001"], "val": ["s002"], "test": ["s000"]})  # as Windows writes it
    split = FileSplit(write(marked))(scans(3, 1))
    assert (ids(split.test), split.left_out) == (["s000"], ())


@pytest.mark.parametrize(
    ("content", "fold", "kind", "message"),
    [
        ({"train": ["s000"], "val": ["s01"]}, 0, DataError, "1 case that the data set does not have: s01.*Did you mean 's001'"),
        ({"train": ["s000"], "val": ["s000"]}, 0, DataError, "s000 more than once"),
        ({"train": ["s000"], "val": []}, 0, DataError, "nothing for 'val'.*'fold="),
        ({"train": ["s000"]}, 0, DataError, "is no split"),
        ({"train": ["s000"], "val": ["s001"], "tset": []}, 0, DataError, "is no split"),
        ({"train": [1], "val": ["s001"]}, 0, DataError, "is no split"),
        ("[", 0, DataError, "cannot be read"),
        ([{"train": ["s000"], "val": ["s001"]}], 1, ConfigError, "holds 1 folds"),
        ({"train": ["s000"], "val": ["s001"]}, 2, ConfigError, "holds one split"),
    ],
)
def test_a_wrong_file_is_an_error(write, content, fold, kind, message):
    with pytest.raises(kind, match=message):
        FileSplit(write(content), fold)(scans(3, 1))


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"cannot be read.*split\.file"):
        FileSplit(str(tmp_path / "none.json"))(scans(3, 1))


# --- blocks


def painted(cases, shape):
    """How many of `cases` hold each pixel [D, H, W]."""
    count = np.zeros(shape, dtype=int)
    for case in cases:
        count[case.box.slices] += 1
    return count


def least_distance(first, second, spacing):
    """Least distance between the pixels of two masks, from edge to edge, by comparing all pairs."""
    a, b = np.argwhere(first), np.argwhere(second)
    gap = np.maximum(np.abs(a[:, None] - b[None]) - 1, 0) * np.array(spacing)
    return np.sqrt((gap**2).sum(axis=-1)).min()


volumes = st.tuples(st.sampled_from([(4, 3), (2, 2), (3, 1), (1, 5), (3, 2, 1), (3, 1, 3), (4, 1, 1)]), st.integers(0, 200))


@settings(max_examples=60, deadline=None)
@given(volumes, st.floats(0, 4), st.tuples(*[st.floats(1, 2)] * 3), st.tuples(*[st.integers(0, 2)] * 3))
def test_blocks_keep_the_buffer_and_never_overlap(layout, buffer, spacing, more):
    blocks, seed = layout
    counts = (1, *blocks)[-3:]
    shape = tuple(int(np.ceil(9 / s)) * n + extra if n > 1 else 2 for n, s, extra in zip(counts, spacing, more, strict=True))
    case = memory_case("scene", shape, affine=plain_affine(spacing), unit="mm")
    split = BlockSplit(blocks, buffer, val=0.35, test=0.25, seed=seed)([case])
    masks = [painted(cases, shape) for cases in split.sides.values()]
    assert sum(masks).max() == 1
    assert sum(len(cases) for cases in split.sides.values()) == np.prod(blocks)
    if buffer == 0:
        assert sum(masks).min() == 1
    for first, second in itertools.combinations(masks, 2):
        assert least_distance(first, second, spacing) >= buffer - 1e-6


def test_blocks_of_one_side_lose_nothing_to_each_other():
    scene = memory_case("scene", (1, 40, 60), unit="m", affine=north_up(pixel=2.0))
    for seed in range(20):
        split = BlockSplit((4, 6), buffer=4.0, test=0.2, seed=seed)([scene])
        side = {case.group[5:]: name for name, cases in split.sides.items() for case in cases}
        region = {case.group[5:]: case.box for cases in split.sides.values() for case in cases}
        for row, column in itertools.product(range(4), range(5)):
            left, right = f"#r{row}c{column}", f"#r{row}c{column + 1}"
            gap = region[right].x - region[left].stop[2]
            assert (gap == 0) == (side[left] == side[right])


def test_one_block_among_others_keeps_the_buffer_from_the_corner_too():
    scene = memory_case("scene", (1, 20, 20))
    corners = []
    for seed in range(12):
        split = BlockSplit((2, 2), buffer=4.0, val=0.25, test=0.0, seed=seed)([scene])
        (alone,) = split.val
        corners.append(alone.shape)
        assert sorted(case.shape for case in split.train) == [(1, 8, 10), (1, 10, 8), (1, 10, 10)]
    assert set(corners) == {(1, 7, 7)}  # 3 = 4 / sqrt(2), rounded up


def test_a_block_is_a_case_with_a_name_and_group_of_its_own():
    dates = [memory_case(f"place_{year}", (1, 8, 8), group="place") for year in (2020, 2021)]
    split = BlockSplit((2, 2), test=0.25)(dates)
    cases = [case for part in split.sides.values() for case in part]
    assert {case.id for case in cases} == {f"place_{y}#r{r}c{c}" for y in (2020, 2021) for r in (0, 1) for c in (0, 1)}
    assert all(case.shape == (1, 4, 4) for case in cases)
    for part in split.sides.values():  # the same place at two dates stays together
        assert ids(part)[: len(part) // 2] == [name.replace("2021", "2020") for name in ids(part)[len(part) // 2 :]]


def test_a_volume_is_cut_into_slabs():
    split = BlockSplit((3, 1, 1), val=0.3, test=0.0)([memory_case("stack", (9, 4, 4))])
    assert sorted(ids(split.train) + ids(split.val)) == ["stack#s0r0c0", "stack#s1r0c0", "stack#s2r0c0"]


@pytest.mark.parametrize(
    ("blocks", "buffer", "message"),
    [
        ((2, 2, 2), 0, "one or two axes"),
        ((1, 1), 0, "one or two axes"),
        ((4,), 0, "one or two axes"),
        ((2, 2), -1, "must be a number from 0 up"),
        ((2, 3), 3, "too small to keep 'split.buffer=3'"),
        ((2, 2), 8, "too small"),
        ((9, 2), 0, "too small"),
    ],
)
def test_blocks_that_cannot_be_made_are_an_error(blocks, buffer, message):
    with pytest.raises(ConfigError, match=message):
        BlockSplit(blocks, buffer)([memory_case("scene", (1, 8, 8))])


@pytest.mark.parametrize("seed", range(6))
def test_a_block_between_two_others_is_as_wide_as_the_buffer(seed):
    scene = memory_case("scene", (1, 15, 4))
    with pytest.raises(ConfigError, match="too small"):
        BlockSplit((3, 1), buffer=6, val=0.3, test=0, seed=seed)([scene])
    assert len(BlockSplit((3, 1), buffer=2, val=0.3, test=0, seed=seed)([scene]).train) == 2


# --- what is written down


def test_a_split_is_written_as_plain_types_and_its_digest_follows_the_regions():
    scene = memory_case("scene", (1, 8, 8))
    split = BlockSplit((2, 2), test=0)([scene])
    record = split.as_dict()
    assert json.loads(json.dumps(record)) == record
    assert {tuple(entry["region"]) for side in ("train", "val") for entry in record[side]} == {
        (0, y, x, 1, 4, 4) for y in (0, 4) for x in (0, 4)
    }
    assert GroupSplit()(scans(4)).as_dict()["test"][0]["region"] is None
    assert split.digest == BlockSplit((2, 2), test=0)([scene]).digest
    assert split.digest != BlockSplit((2, 2), buffer=1, test=0)([scene]).digest


def test_left_out_cases_are_recorded_and_do_not_change_the_digest(write):
    file = write({"train": ["s000"], "val": ["s001"]})
    split, wider = FileSplit(file)(scans(2, 1)), FileSplit(file)(scans(3, 1))
    assert wider.as_dict()["left_out"] == ["s002"]
    assert split.digest == wider.digest


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_opens_with_its_command_and_builds_its_scheme(path):
    lines = path.read_text().splitlines()
    whole = lines[0] == "# @package _global_"  # those with folds set `fold`, too
    assert lines[whole].startswith("# python train.py ")
    assert f"split={path.stem}" in lines[whole]
    config = OmegaConf.load(path)
    config = config.split if whole else config
    assert callable(hydra.utils.instantiate(config, **({"file": "splits.json"} if path.stem == "file" else {})))
