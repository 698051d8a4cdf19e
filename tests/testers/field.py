"""How much of the image a network's scores are computed from, read off the operators that it executes."""

import re


def receptive_field(lines, classes):
    """The side, in pixels, of what one score sees; not for recurrent networks, which see the whole image.

    Every convolution to `classes` channels is taken for a layer of scores, and the widest field counts. A map's field grows by
    (kernel - 1) · dilation · jump in each convolution or pooling, where the jump, by how many pixels two neighbours of the map lie
    apart, is multiplied by its stride. In a transposed convolution a place reads kernel / stride neighbours, and the jump is
    divided.

    Args:
        lines: of `executed`, for an image of any size.
        classes: how many there are; no other layer may have as many channels.
    """
    known, widest = {"image": (1.0, 1.0)}, 0.0
    for number, line in enumerate(lines, start=1):
        text, _, came = line.partition(" <- ")
        jump, field = max((known[source] for source in came.split(", ")), key=lambda place: place[1])
        operator, *words = text.split()
        setting = {word[0]: int(word[1:].split("x")[-1]) for word in words if re.fullmatch(r"[kspd]\d+(x\d+)*", word)}
        if operator in ("conv", "deconv"):
            setting["k"] = int(words[0].split("x")[-1])
        if operator == "deconv":
            field += (-(-setting["k"] // setting["s"]) - 1) * jump
            jump /= setting["s"]
        elif operator == "scatter":  # un-pooling by 2 x 2
            jump /= 2
        elif operator in ("conv", "maxpool", "avgpool"):
            field += (setting["k"] - 1) * setting.get("d", 1) * jump
            jump *= setting["s"]
        known[str(number)] = jump, field
        if operator == "conv" and words[0].startswith(f"{classes}x"):
            widest = max(widest, field)
    return round(widest)
