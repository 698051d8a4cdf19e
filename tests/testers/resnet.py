"""What a ResNet executes."""

from __future__ import annotations


def specification(blocks, strides, dilations, on_3x3):
    """The lines of a ResNet, written after the papers' tables."""
    lines = ["conv 64x3x7x7 s2 p3 nobias <- image", "bn 64 <- 1", "relu <- 2", "maxpool k3 s2 p1 ceil <- 3"]

    def then(text, before=None):
        lines.append(f"{text} <- {before or len(lines)}")
        return len(lines)

    inputs = 64
    for stage, (count, stride, dilation) in enumerate(zip(blocks, strides, dilations, strict=True)):
        middle, outputs = 64 * 2**stage, 256 * 2**stage
        for block in range(count):
            start, first = len(lines), stride if block == 0 else 1
            then(f"conv {middle}x{inputs}x1x1 s{1 if on_3x3 else first} p0 nobias", start)
            then(f"bn {middle}")
            then("relu")
            spread = f" d{dilation}" if dilation > 1 else ""
            then(f"conv {middle}x{middle}x3x3 s{first if on_3x3 else 1} p{dilation}{spread} nobias")
            then(f"bn {middle}")
            then("relu")
            then(f"conv {outputs}x{middle}x1x1 s1 p0 nobias")
            branch2 = then(f"bn {outputs}")
            beside = start
            if block == 0:
                then(f"conv {outputs}x{inputs}x1x1 s{first} p0 nobias", start)
                beside = then(f"bn {outputs}")
            then("add", f"{beside}, {branch2}")
            then("relu")
            inputs = outputs
    return lines
