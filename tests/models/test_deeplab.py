import math

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from tests.testers.networks import NetworkTester, by_formula, configured, counted, described, noise, perturbed, varied
from tests.testers.resnet import specification as resnet
from tests.testers.sequence import executed
from voxtile.cases.window import IGNORE
from voxtile.errors import ConfigError
from voxtile.models.deeplab import DeepLabV1, DeepLabV1MSc, DeepLabV2, DeepLabV2VGG16
from voxtile.models.layers import resize_bilinear
from voxtile.models.network import Output

OPTIONS = ["deeplab_v1", "deeplab_v1_4x4", "deeplab_v1_7x7", "deeplab_v1_msc", "deeplab_v2_vgg16", "deeplab_v2"]


def tamed(network):
    """The network with the last normalisation of each block made small, which keeps activations in bounds as training does."""
    for name, value in network.named_parameters():
        if name.endswith("bn2c.weight"):
            nn.init.constant_(value, 0.3)
    return network


class TestDeepLabV1(NetworkTester):
    dims, aligned = (2,), (65, 65)

    def make(self, in_channels, num_classes, dims=2):
        return DeepLabV1(in_channels, num_classes, width=1 / 8)


class TestDeepLabV1FullSizeLoss(NetworkTester):
    dims, aligned = (2,), (65, 65)

    def make(self, in_channels, num_classes, dims=2):
        return DeepLabV1(in_channels, num_classes, width=1 / 8, kernel=4, rate=4, fc_channels=512, full_size_loss=True)


class TestDeepLabV1MSc(NetworkTester):
    dims, aligned = (2,), (65, 65)

    def make(self, in_channels, num_classes, dims=2):
        return DeepLabV1MSc(in_channels, num_classes, width=1 / 8)


class TestDeepLabV2VGG16(NetworkTester):
    dims, aligned = (2,), (65, 65)

    def make(self, in_channels, num_classes, dims=2):
        return DeepLabV2VGG16(in_channels, num_classes, width=1 / 8)


class TestDeepLabV2(NetworkTester):
    dims, aligned = (2,), (65, 65)

    def make(self, in_channels, num_classes, dims=2):
        return tamed(DeepLabV2(in_channels, num_classes, width=1 / 16, depth=50, scales=(1.0, 0.5)))


def blank(height, width=None, channels=3):
    return torch.zeros(1, channels, height, width or height, device="meta")


# --- parameters, after the tables


# Option and changes of it, values that do not learn, and all values for 3 channels and 21 classes: the specification's totals.
COUNTS = [
    ("deeplab_v1", {}, 0, 20_505_429),
    ("deeplab_v1_4x4", {}, 0, 65_140_565),
    ("deeplab_v1_7x7", {}, 0, 134_346_581),
    ("deeplab_v1_msc", {}, 0, 21_711_550),
    ("deeplab_v1_msc", {"train_only_new": True}, 20_483_904, 21_711_550),  # all of LargeFOV but fc8
    ("deeplab_v2_vgg16", {}, 0, 37_877_652),
    ("deeplab_v2_vgg16", {"rates": [12]}, 0, 20_505_429),
    ("deeplab_v2", {"frozen_norm": True}, 105_344, 44_048_532),
    ("deeplab_v2", {}, 0, 44_048_532),
    ("deeplab_v2", {"rates": [12]}, 0, 42_887_253),
]


@pytest.mark.parametrize(("option", "changes", "fixed", "total"), COUNTS)
def test_there_are_as_many_parameters_as_in_the_tables(option, changes, fixed, total):
    assert counted(described(option, 3, 21, **changes)) == (total - fixed, total)


VGG16 = {f"trunk.conv{block}_{number}" for block, count in enumerate((2, 2, 3, 3, 3), start=1) for number in range(1, count + 1)}
LAST = ("fc6", "fc7", "fc8")
NAMES = {
    "deeplab_v1": {*VGG16, *LAST},
    "deeplab_v1_4x4": {*VGG16, *LAST},
    "deeplab_v1_7x7": {*VGG16, *LAST},
    "deeplab_v1_msc": {
        *VGG16, *LAST,
        *(f"{name}_{part}" for name in ("data", "pool1", "pool2", "pool3", "pool4") for part in ("conv", "fc", "ms")),
    },
    "deeplab_v2_vgg16": {*VGG16, *(f"{name}_{branch}" for name in LAST for branch in range(1, 5))},
    "deeplab_v2": {"trunk.conv1", *(f"fc1_c{branch}" for branch in range(4))},
}  # fmt: skip


@pytest.mark.parametrize("option", OPTIONS)
def test_layers_have_the_authors_names(option):
    biases = NAMES[option] - {"trunk.conv1"}  # of a ResNet, whose layers have a specification of their own
    found = {name for name in described(option, 3, 21).state_dict() if not name.startswith(("trunk.res", "trunk.bn_conv1"))}
    assert found == {f"{name}.weight" for name in NAMES[option]} | {f"{name}.bias" for name in biases}


# --- what is executed


class Lines(list):
    """Lines of a specification; each follows the one before unless it says otherwise."""

    def then(self, texts, *before):
        for text in texts.split(" / "):
            came = before or (len(self) or "image",)
            before = ()
            if text == "dropout":  # as PyTorch does it where there is no kernel of its own: x times random zeros and twos
                start = came[0]
                self.extend([f"bernoulli_ <- {start}", f"div_ <- {len(self) + 1}", f"mul <- {start}, {len(self) + 2}"])
            else:
                self.append(f"{text} <- {', '.join(map(str, came))}")
        return len(self)


def vgg16(lines):
    """The trunk's lines; gives the numbers of pool1 to pool5."""
    inputs, pools = 3, []
    for outputs, count, stride, spread in (
        (64, 2, 2, "p1"),
        (128, 2, 2, "p1"),
        (256, 3, 2, "p1"),
        (512, 3, 1, "p1"),
        (512, 3, 1, "p2 d2"),
    ):
        for _ in range(count):
            lines.then(f"conv {outputs}x{inputs}x3x3 s1 {spread} / relu")
            inputs = outputs
        pools.append(lines.then(f"maxpool k3 s{stride} p1 ceil"))
    return pools


def dense(kernel, padding, rate, width, classes=21):
    return (
        f"conv {width}x512x{kernel}x{kernel} s1 p{padding} d{rate} / relu / dropout / conv {width}x{width}x1x1 s1 p0 / relu / "
        f"dropout / conv {classes}x{width}x1x1 s1 p0"
    )


def in_training(network, side=321):
    """The lines of a forward pass in training; normalisation would want statistics, which the meta device has not."""
    return executed(network.train(), blank(side))


@pytest.mark.parametrize(
    ("option", "changes", "pool5a", "fc"),
    [
        ("deeplab_v1", {}, True, (3, 12, 12, 1024)),
        ("deeplab_v1_4x4", {}, False, (4, 6, 4, 4096)),
        ("deeplab_v1_4x4", {"rate": 8}, False, (4, 12, 8, 4096)),
        ("deeplab_v1_7x7", {}, False, (7, 12, 4, 4096)),
    ],
)
def test_v1_executes_its_specification(option, changes, pool5a, fc):
    lines = Lines()
    vgg16(lines)
    if pool5a:
        lines.then("avgpool k3 s1 p1")
    lines.then(dense(*fc))
    network = described(option, **changes)
    assert in_training(network) == lines
    assert network.dropout.p == 0.5
    lines = executed(network.eval(), blank(321))
    assert [line.split()[0] for line in lines[-2:]] == ["conv", "upsample_bilinear2d"]  # the scores are interpolated, nothing else


@pytest.mark.parametrize("training", [True, False])
def test_msc_executes_its_specification(training):
    lines, sides = Lines(), []
    pools = vgg16(lines)
    for inputs, stride, before in zip((3, 64, 128, 256, 512), (8, 4, 2, 1, 1), ("image", *pools), strict=False):
        drop = "dropout / " if training else ""
        lines.then(f"conv 128x{inputs}x3x3 s{stride if training else 1} p1", before)
        sides.append(lines.then(f"relu / {drop}conv 128x128x1x1 s1 p0 / relu / {drop}conv 21x128x1x1 s1 p0"))
    lines.then("avgpool k3 s1 p1", pools[4])
    fc8 = lines.then(dense(3, 12, 12, 1024) if training else dense(3, 12, 12, 1024).replace("dropout / ", ""))
    parts = [*sides, fc8]
    if not training:  # everything that has not the image's size
        parts[1:] = [lines.then("upsample_bilinear2d", part) for part in parts[1:]]
    added = parts[0]
    for part in parts[1:]:
        added = lines.then("add", added, part)
    network = described("deeplab_v1_msc").train(training)
    assert executed(network, blank(321)) == lines
    assert network.dropout.p == 0.5


@pytest.mark.parametrize(("changes", "rates"), [({}, (6, 12, 18, 24)), ({"rates": [2, 4, 8, 12]}, (2, 4, 8, 12))])
def test_v2_on_vgg16_executes_its_specification(changes, rates):
    lines, scores = Lines(), []
    pool5 = vgg16(lines)[-1]
    for rate in rates:
        first, rest = dense(3, rate, rate, 1024).split(" / ", 1)
        lines.then(first, pool5)
        scores.append(lines.then(rest))
    added = scores[0]
    for part in scores[1:]:
        added = lines.then("add", added, part)
    network = described("deeplab_v2_vgg16", **changes)
    assert in_training(network) == lines
    assert network.dropout.p == 0.5


def pyramid(lines, res5):
    scores = [lines.then(f"conv 21x2048x3x3 s1 p{rate} d{rate}", res5) for rate in (6, 12, 18, 24)]
    added = scores[0]
    for part in scores[1:]:
        added = lines.then("add", added, part)
    return added


def test_v2_executes_its_specification():
    trunk = resnet((3, 4, 6, 3), strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), on_3x3=False)
    lines, maps = Lines(), []
    for scale in (1, 0.75, 0.5):
        start = len(lines)
        first = "image" if scale == 1 else lines.then("upsample_bilinear2d", "image")
        shift = len(lines)
        for line in trunk:
            text, _, before = line.partition(" <- ")
            lines.then(text, *(first if number == "image" else int(number) + shift for number in before.split(", ")))
        assert len(lines) - start == len(trunk) + (scale != 1)
        maps.append(pyramid(lines, len(lines)))
    same = [lines.then("upsample_bilinear2d", part) for part in maps[1:]]
    lines.then("maximum", maps[0], same[0])
    lines.then("maximum", len(lines), same[1])
    # With the paper's frozen normalisation, since one that learns counts its batches in between; half as deep takes half the time.
    assert in_training(described("deeplab_v2", depth=50, frozen_norm=True)) == lines


# --- sizes, places and fields of view


@pytest.mark.parametrize(("side", "sizes"), [(321, [161, 81, 41, 41, 41]), (513, [257, 129, 65, 65, 65])])
def test_maps_have_the_papers_sizes(side, sizes):
    network = described("deeplab_v1").train()
    assert [pool.shape[-1] for pool in network.trunk(blank(side))] == sizes
    for option in ("deeplab_v1", "deeplab_v1_msc", "deeplab_v2_vgg16"):
        assert described(option).train()(blank(side)).maps[0].logits.shape[2:] == (sizes[-1],) * 2


def test_the_four_maps_of_v2_have_their_scales_sizes():
    maps = described("deeplab_v2", depth=50, frozen_norm=True).train()(blank(321)).maps
    assert [each.logits.shape[-1] for each in maps] == [41, 31, 21, 41]
    assert [each.weight for each in maps] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("option", "changes", "field"),
    [("deeplab_v1_4x4", {}, 128), ("deeplab_v1_4x4", {"rate": 8}, 224), ("deeplab_v1_7x7", {}, 224), ("deeplab_v1", {}, 224)],
)
def test_fc6_sees_as_much_as_the_papers_table_says(option, changes, field):
    fc6 = configured(option, width=1 / 64, **changes).fc6
    x = torch.zeros(1, fc6.in_channels, 61, 61, requires_grad=True)
    y = functional.conv2d(x, torch.ones_like(fc6.weight), None, fc6.stride, fc6.padding, fc6.dilation)
    assert y.shape[2:] == (61, 61)
    y[0, 0, 30, 30].backward()
    seen = x.grad[0, 0].nonzero()
    reach = (seen.max(0).values - seen.min(0).values).tolist()
    assert (seen.max(0).values + seen.min(0).values).tolist() == [60, 60]  # as far to each side
    # The outermost taps lie `reach` places of 8 pixels apart, and each stands for a cell of VGG16's stride of 32.
    assert [8 * distance + 32 for distance in reach] == [field, field]


def judged(network, height, width):
    """Each map's (rows, columns), after the labels it picks from an image whose label says where it is."""
    with torch.no_grad():
        maps = network.train()(noise(1, 3, height, width)).maps
    rows = torch.arange(height, dtype=torch.uint8)[None, :, None].expand(1, height, width)
    columns = torch.arange(width, dtype=torch.uint8)[None, None].expand(1, height, width)
    assert all(each.label(rows).shape[1:] == each.logits.shape[2:] for each in maps)
    return [(each.label(rows)[0, :, 0].tolist(), each.label(columns)[0, 0].tolist()) for each in maps]


@pytest.mark.parametrize("kind", [DeepLabV1, DeepLabV1MSc, DeepLabV2VGG16])
def test_labels_are_those_of_the_pixels_0_8_16(kind):
    network = kind(3, 2, width=1 / 32)
    assert judged(network, 33, 41) == [([0, 8, 16, 24, 32], [0, 8, 16, 24, 32, 40])]
    assert judged(network, 32, 18) == [([0, 8, 16, 24, IGNORE], [0, 8, 16, IGNORE])]


def test_labels_of_the_scaled_maps_are_those_of_the_nearest_pixels():
    network = DeepLabV2(3, 2, width=1 / 32, depth=50)
    places = [[0, 8, 16, 24, 32], [0, 11, 21, 32], [0, 16, 32], [0, 8, 16, 24, 32]]
    assert judged(network, 33, 33) == [(line, line) for line in places]
    short = [[0, 8, 16, IGNORE, IGNORE], [0, 11, 21, IGNORE], [0, 16, IGNORE], [0, 8, 16, IGNORE, IGNORE]]
    assert judged(network, 22, 33) == list(zip(short, places, strict=True))


def test_scaled_images_have_sides_of_8k_plus_1_pixels_whatever_the_image_has():
    seen = []
    network = DeepLabV2(3, 2, width=1 / 32, depth=50).eval()
    network.trunk.register_forward_hook(lambda _, inputs, __: seen.append(tuple(inputs[0].shape[2:])))
    with torch.inference_mode():
        network(noise(1, 3, 34, 60))
    assert seen == [(65, 65), (49, 49), (33, 33)]


@pytest.mark.parametrize("kind", [DeepLabV1, DeepLabV1MSc, DeepLabV2VGG16, DeepLabV2])
@pytest.mark.parametrize("size", [(33, 65), (20, 37)])
def test_at_its_places_evaluation_gives_the_map_of_training(kind, size):
    settings = {"depth": 50, "frozen_norm": True} if kind is DeepLabV2 else {"dropout": 0.0}
    network = kind(3, 2, width=1 / 32, **settings)
    image = noise(1, 3, *size)
    with torch.inference_mode():
        logits, each = network.eval()(image), network.train()(image).maps[-1]
    rows, columns = each.rows[each.rows >= 0], each.columns[each.columns >= 0]
    wanted = each.logits[:, :, : len(rows), : len(columns)]
    torch.testing.assert_close(logits[:, :, rows][..., columns], wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max().item())


def test_a_loss_at_full_size_judges_what_evaluation_gives():
    network = DeepLabV2(3, 2, width=1 / 32, depth=50, frozen_norm=True, full_size_loss=True)
    image = noise(1, 3, 20, 37)
    with torch.inference_mode():
        assert torch.equal(network.train()(image), network.eval()(image))


# --- interpolation


@pytest.mark.parametrize(("before", "after"), [((3, 5), (17, 33)), ((4, 9), (4, 7)), ((1, 6), (5, 1))])
def test_interpolation_is_the_same_where_a_gradient_is_wanted(before, after):
    image = noise(2, 3, *before).double().requires_grad_()
    resized = resize_bilinear(image, after)
    with torch.no_grad():
        torch.testing.assert_close(resize_bilinear(image, after), resized.detach())
    reference = noise(2, 3, *before).double().requires_grad_()
    weights = noise(2, 3, *after).double()
    (resized * weights).sum().backward()
    (enlarged(reference, after) * weights).sum().backward()
    torch.testing.assert_close(image.grad, reference.grad)


def test_a_pixel_that_is_no_number_spoils_what_sees_it_only():
    network = perturbed(DeepLabV1(3, 2, width=1 / 64, rate=2)).eval()
    image = noise(1, 3, 257, 257)
    with torch.inference_mode():
        expected = network(image)
        image[..., 3, 5] = torch.nan
        logits = network(image)
    spoilt = logits.isnan()
    assert spoilt[..., 3, 5].all()
    assert not spoilt[..., 160:, :].any()
    assert not spoilt[..., 160:].any()
    assert torch.equal(logits[~spoilt], expected[~spoilt])


@pytest.mark.parametrize("learning", [False, True])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_interpolation_keeps_its_digits_under_autocast(precision, learning):
    scores = noise(1, 3, 21, 21).to(precision).requires_grad_(learning)
    with torch.autocast("cpu", torch.bfloat16):
        found = resize_bilinear(scores, (161, 161))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, enlarged(scores.float(), (161, 161)))


# --- against plain builds of the specification


def conv(state, name, x, **settings):
    return functional.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), **settings)


def plain_vgg16(state, x):
    pools = []
    for block, count in enumerate((2, 2, 3, 3, 3), start=1):
        dilation = 2 if block == 5 else 1
        for number in range(1, count + 1):
            x = functional.relu(conv(state, f"trunk.conv{block}_{number}", x, padding=dilation, dilation=dilation))
        x = functional.max_pool2d(x, 3, 2 if block < 4 else 1, padding=1, ceil_mode=True)
        pools.append(x)
    return pools


def plain_head(state, x, suffix="", padding=12, rate=12):
    x = functional.relu(conv(state, f"fc6{suffix}", x, padding=padding, dilation=rate))
    return conv(state, f"fc8{suffix}", functional.relu(conv(state, f"fc7{suffix}", x)))


def enlarged(x, size):
    return functional.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


def plain_v1(state, x, average=True, padding=12, rate=12):
    pool5 = plain_vgg16(state, x)[-1]
    return plain_head(state, functional.avg_pool2d(pool5, 3, 1, 1) if average else pool5, "", padding, rate)


def plain_msc(state, x):
    pools = plain_vgg16(state, x)
    scores = enlarged(plain_head(state, functional.avg_pool2d(pools[-1], 3, 1, 1)), x.shape[2:])
    for name, before in zip(("data", "pool1", "pool2", "pool3", "pool4"), (x, *pools), strict=False):
        side = functional.relu(conv(state, f"{name}_conv", before, padding=1))
        side = conv(state, f"{name}_ms", functional.relu(conv(state, f"{name}_fc", side)))
        scores = scores + enlarged(side, x.shape[2:])
    return scores


def plain_v2_vgg16(state, x, rates=(6, 12, 18, 24)):
    pool5 = plain_vgg16(state, x)[-1]
    return sum(plain_head(state, pool5, f"_{number}", rate, rate) for number, rate in enumerate(rates, start=1))


def normalised(state, name, x):
    mean, var, scale, shift = (state[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias"))
    return (x - mean) / (var + 1e-5).sqrt() * scale + shift


def plain_resnet(state, x, blocks):
    def unit(name, norm, x, **settings):
        return normalised(state, f"trunk.{norm}", conv(state, f"trunk.{name}", x, **settings))

    x = functional.relu(unit("conv1", "bn_conv1", x, stride=2, padding=3))
    x = functional.max_pool2d(x, 3, 2, padding=1, ceil_mode=True)
    for stage, (count, stride, rate) in enumerate(zip(blocks, (1, 2, 1, 1), (1, 1, 2, 4), strict=True), start=2):
        for number in range(count):
            block, first = f"res{stage}_{number}", stride if number == 0 else 1
            beside = unit(f"{block}.branch1", f"{block}.bn1", x, stride=first) if number == 0 else x
            x = functional.relu(unit(f"{block}.branch2a", f"{block}.bn2a", x, stride=first))
            x = functional.relu(unit(f"{block}.branch2b", f"{block}.bn2b", x, padding=rate, dilation=rate))
            x = functional.relu(unit(f"{block}.branch2c", f"{block}.bn2c", x) + beside)
    return x


def plain_v2(state, x, blocks=(3, 4, 23, 3), scales=(1.0, 0.75, 0.5)):
    scores = []
    for scale in scales:
        small = x if scale == 1 else enlarged(x, [round((side - 1) * scale) + 1 for side in x.shape[2:]])
        res5 = plain_resnet(state, small, blocks)
        found = sum(conv(state, f"fc1_c{i}", res5, padding=rate, dilation=rate) for i, rate in enumerate((6, 12, 18, 24)))
        scores.append(found if scale == 1 else enlarged(found, scores[0].shape[2:]))
    return torch.stack(scores).amax(dim=0)


# Option and changes, channels, width, plain build, what the image is padded to a multiple of.
PLAIN = {
    "LargeFOV": ("deeplab_v1", {}, 3, 1 / 16, plain_v1, 8),
    "4x4": ("deeplab_v1_4x4", {}, 3, 1 / 32, lambda s, x: plain_v1(s, x, False, 6, 4), 8),
    "7x7": ("deeplab_v1_7x7", {}, 2, 1 / 32, lambda s, x: plain_v1(s, x, False, 12, 4), 8),
    "MSc": ("deeplab_v1_msc", {}, 3, 1 / 16, plain_msc, 8),
    "v2 VGG16": ("deeplab_v2_vgg16", {}, 5, 1 / 16, plain_v2_vgg16, 8),
    "ASPP-S": ("deeplab_v2_vgg16", {"rates": [2, 4, 8, 12]}, 3, 1 / 16, lambda s, x: plain_v2_vgg16(s, x, (2, 4, 8, 12)), 8),
    "v2": ("deeplab_v2", {}, 3, 1 / 16, plain_v2, 32),
    "v2, one scale": (
        "deeplab_v2", {"depth": 50, "scales": [1.0]}, 3, 1 / 16, lambda s, x: plain_v2(s, x, (3, 4, 6, 3), (1.0,)), 8
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "size"), [("LargeFOV", (7, 65)), *((name, (50, 34)) for name in PLAIN)])
def test_logits_are_those_of_a_plain_build_of_the_specification(name, size):
    option, changes, channels, width, plain, unit = PLAIN[name]
    network = by_formula(configured(option, channels, 4, width=width, **changes).double()).eval()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):  # else the sums of a hundred blocks would grow and grow
            layer.running_var.mul_(4)
    image = noise(1, channels, *size).double()
    down, right = (math.ceil((side - 1) / unit) * unit + 1 - side for side in size)
    padded = functional.pad(image, (0, right, 0, down))
    with torch.inference_mode():
        wanted = enlarged(plain(network.state_dict(), padded), padded.shape[2:])[..., : size[0], : size[1]]
        found = network(image)
    torch.testing.assert_close(found, varied(wanted), rtol=1e-9, atol=1e-9 * wanted.abs().max().item())


# --- how it starts


def deviations(network):
    return {name: layer.weight.std().item() for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d)}


@pytest.mark.parametrize(("changes", "side_init"), [({}, "msra"), ({"side_init": "paper"}, "paper")])
def test_layers_start_as_the_paper_says(changes, side_init):
    torch.manual_seed(0)
    network = configured("deeplab_v1_msc", 3, 60, width=1 / 4, **changes)
    for name, found in deviations(network).items():
        weight = network.get_submodule(name).weight
        wanted = math.sqrt(2 / weight[0].numel())
        if name == "fc8" or name.endswith("_ms"):
            wanted = 0.01
        elif side_init == "paper" and name.startswith(("data", "pool")):
            wanted = 0.005 if name == "pool4_fc" else 0.001
        assert found == pytest.approx(wanted, rel=5 / math.sqrt(2 * weight.numel())), name
        assert not network.get_submodule(name).bias.any()


def test_the_pyramids_start_small():
    torch.manual_seed(0)
    found = deviations(DeepLabV2(3, 60, width=1 / 8, depth=50)) | deviations(DeepLabV2VGG16(3, 60, width=1 / 8))
    for name in (*(f"fc1_c{n}" for n in range(4)), *(f"fc8_{n}" for n in range(1, 5))):
        assert found[name] == pytest.approx(0.01, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("option", ["deeplab_v1", "deeplab_v1_msc", "deeplab_v2_vgg16", "deeplab_v2"])
def test_from_scratch_as_configured_scores_are_of_a_size_to_learn_from(option):
    torch.manual_seed(0)
    output = configured(option, 3, 4, width=1 / 8).train()(noise(2, 3, 65, 65))
    assert isinstance(output, Output)
    for each in output.maps:
        assert 1e-3 < each.logits.std() < 10


def test_only_the_side_branches_and_fc8_learn_where_asked():
    network = described("deeplab_v1_msc", train_only_new=True)
    learning = {name.split(".")[0] for name, value in network.named_parameters() if value.requires_grad}
    assert learning == {
        f"{side}_{part}" for side in ("data", "pool1", "pool2", "pool3", "pool4") for part in ("conv", "fc", "ms")
    } | {"fc8"}


@pytest.mark.slow
def test_frozen_normalisation_stays_as_it_is_through_a_step_of_training():
    network = by_formula(DeepLabV2(3, 2, width=1 / 32, depth=50, frozen_norm=True)).train()
    names = [name for name in network.state_dict() if "bn" in name]
    before = {name: network.state_dict()[name].clone() for name in names}
    image = noise(2, 3, 33, 33)
    optimizer = torch.optim.SGD([v for v in network.parameters() if v.requires_grad], lr=0.01, weight_decay=0.1)
    sum(each.logits.square().mean() for each in network(image).maps).backward()
    assert all((value.grad is not None) == value.requires_grad for value in network.parameters())
    optimizer.step()
    assert len(names) == 5 * 53
    assert all(torch.equal(before[name], network.state_dict()[name]) for name in names)
    with torch.inference_mode():
        training = network.scores(image)[-1][0]
        assert torch.equal(network.eval().scores(image)[-1][0], training)


# --- weights


def test_the_authors_layers_are_taken_from_a_file_as_they_are(tmp_path):
    given = DeepLabV2VGG16(3, 5, width=1 / 16).state_dict()
    save_file({name.removeprefix("trunk."): value for name, value in given.items()}, tmp_path / "deeplab.safetensors")
    network = DeepLabV2VGG16(3, 2, width=1 / 16, weights=str(tmp_path / "deeplab.safetensors"))
    given["trunk.conv1_1.weight"] = given["trunk.conv1_1.weight"].flip(1)  # Caffe's sees blue, green and red
    for name, value in network.state_dict().items():
        assert name.startswith("fc8") or torch.equal(value, given[name]), name


def whole_vgg16(path):
    """A file of VGG16 as torchvision has it, whose fc6 and fc7 count; returns fc6's taps [512, 7, 7]."""
    # Repeated numbers take no room in the file: fc6 counts its taps [512, 7, 7], fc7 its inputs, the biases the filters.
    taps = torch.arange(512 * 49).float()
    state = {"classifier.0.weight": taps.expand(4096, -1), "classifier.0.bias": torch.arange(4096.0)}
    state |= {"classifier.3.weight": torch.arange(4096.0).expand(4096, -1), "classifier.3.bias": -torch.arange(4096.0)}
    inputs = 3
    for index, outputs in zip(
        (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), (64, 64, 128, 128, *[256] * 3, *[512] * 6), strict=True
    ):
        state[f"features.{index}.weight"] = torch.full((1,), float(index)).expand(outputs, inputs, 3, 3)
        state[f"features.{index}.bias"] = torch.zeros(outputs)
        inputs = outputs
    torch.save(state, path)
    return taps.view(512, 7, 7)


def test_vgg16s_fully_connected_layers_are_thinned_out(tmp_path):
    taps = whole_vgg16(tmp_path / "vgg16.pth")
    network = DeepLabV2VGG16(1, 2, rates=[6, 12], weights=str(tmp_path / "vgg16.pth"))
    assert network.trunk.conv5_3.weight.unique().tolist() == [28]
    kept = taps[:, ::3, ::3]
    for number in range(2):
        filters = torch.arange(number, 4096, 4).float()
        fc6, fc7 = (network.get_submodule(f"fc{n}_{number + 1}") for n in (6, 7))
        assert torch.equal(fc6.weight, kept.expand(1024, -1, -1, -1))
        assert torch.equal(fc6.bias, filters)
        assert torch.equal(fc7.weight[:, :, 0, 0], filters.expand(1024, -1))
        assert torch.equal(fc7.bias, -filters)


def test_of_fc6s_taps_a_single_one_is_the_middle(tmp_path):
    taps = whole_vgg16(tmp_path / "vgg16.pth")
    fc6 = DeepLabV1(1, 2, kernel=1, weights=str(tmp_path / "vgg16.pth")).fc6
    assert torch.equal(fc6.weight[:, :, 0, 0], taps[:, 3, 3].expand(1024, -1))


def test_torchvisions_resnets_need_strides_on_the_3x3():
    with pytest.raises(ConfigError, match=r"model\.stride_on=3x3"):
        DeepLabV2(3, 2, width=1 / 16, weights="imagenet")


def test_a_file_of_something_else_is_refused(tmp_path):
    save_file({"other.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    for kind in (DeepLabV1, DeepLabV2VGG16, DeepLabV2):
        with pytest.raises(ConfigError, match=r"hold no 'conv1"):
            kind(3, 2, width=1 / 16, weights=str(tmp_path / "other.safetensors"))


@pytest.mark.parametrize(
    ("kind", "wrong", "message"),
    [
        (DeepLabV1, {"kernel": 8}, "takes kernel 1 to 7"),
        (DeepLabV1, {"kernel": 4, "rate": 3}, "even for an even kernel"),
        (DeepLabV1MSc, {"fc_channels": 5000}, "DeepLabV1MSc takes kernel"),
        (DeepLabV1MSc, {"side_init": "zero"}, "takes side_init 'msra' or 'paper'"),
        (DeepLabV2VGG16, {"rates": []}, "takes one rate or more"),
        (DeepLabV2, {"rates": [0]}, "takes one rate or more"),
        (DeepLabV2, {"scales": [0.5]}, "scales that begin with 1"),
        (DeepLabV2, {"scales": [1.0, 0.71]}, "scales that begin with 1"),
    ],
)
def test_settings_out_of_range_are_refused(kind, wrong, message):
    with pytest.raises(ValueError, match=message):
        kind(3, 2, width=1 / 32, **wrong)
