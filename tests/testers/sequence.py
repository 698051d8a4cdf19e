"""What a network does, operator by operator, as lines that can be held against a specification.

    executed(network, image) -> ["conv 64x3x3x3 s1 p100 <- image", "relu <- 1", "maxpool k2 s2 p0 ceil <- 2", …]

Each line names the operator with its settings and, after the arrow, the lines that its inputs came from (from 1 up). What only
looks at a tensor in another way (views, casts, copies) leaves no line; cutting a part out is a line "crop".

A specification may name its lines instead of counting them: `numbered` counts.
"""

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode

QUIET = {
    "view", "_unsafe_view", "reshape", "expand", "permute", "transpose", "t", "detach", "clone", "_to_copy", "alias", "squeeze",
    "unsqueeze", "select", "contiguous", "empty_like", "zeros_like", "split", "unbind", "as_strided", "lift_fresh",
}  # fmt: skip


def _one(value):
    """2 for [2, 2], 2x3 for [2, 3]."""
    value = list(value)
    return str(value[0]) if len(set(value)) == 1 else "x".join(map(str, value))


def _described(name, args, kwargs):
    if name == "convolution":
        _, weight, bias, stride, padding, dilation, transposed, _, groups = args
        text = f"{'deconv' if transposed else 'conv'} {'x'.join(map(str, weight.shape))} s{_one(stride)} p{_one(padding)}"
        text += f" d{_one(dilation)}" if _one(dilation) != "1" else ""
        text += f" g{groups}" if groups != 1 else ""
        return text + (" nobias" if bias is None else "")
    if name.startswith(("max_pool2d", "avg_pool2d")):
        kernel, stride, padding, *rest = (*args[1:], *[None] * 5)[:6]
        ceil = (rest[1] if name.startswith("max") else rest[0]) or kwargs.get("ceil_mode")
        text = f"{name[:3]}pool k{_one(kernel)} s{_one(stride or kernel)} p{_one(padding or [0])}"
        return text + (" ceil" if ceil else "")
    if "batch_norm" in name:
        return f"bn {len(args[1])}"
    if name == "native_group_norm":
        return f"groupnorm {args[6]} of {args[4]}"
    if "dropout" in name:
        return f"dropout {args[1]}"
    if name in ("relu_", "relu"):
        return "relu"
    if name == "slice":
        dim, start, end = (*args[1:], 0, 0, 0)[:3]
        length = args[0].shape[dim]
        end = min(end, length) if end is not None else length
        return None if (start or 0, end) == (0, length) else f"crop {dim} {start or 0}:{end}"
    if name == "add" and not isinstance(args[1], torch.Tensor):
        return f"add {args[1]}"
    if name == "mul" and not isinstance(args[1], torch.Tensor):
        return f"mul {args[1]}"
    return {"cat": "concat", "add_": "add", "add": "add"}.get(name, name)


class _Recorder(TorchDispatchMode):
    def __init__(self, image):
        self.lines, self.shapes, self.source, self.held = [], [], {id(image): "image"}, [image]

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        name = function.overloadpacket.__name__
        tensors = [t for a in args for t in (a if isinstance(a, list | tuple) else [a]) if isinstance(t, torch.Tensor)]
        came = [self.source[id(t)] for t in tensors if id(t) in self.source]
        outputs = [t for t in (result if isinstance(result, list | tuple) else [result]) if isinstance(t, torch.Tensor)]
        if not came:
            return result
        text = None if name in QUIET else _described(name, args, kwargs)
        if text is not None:
            self.lines.append(f"{text} <- {', '.join(map(str, came))}")
            self.shapes.append(tuple(outputs[0].shape) if outputs else ())
        for output in outputs:
            self.source[id(output)] = came[0] if text is None else len(self.lines)
            self.held.append(output)  # so that no other tensor gets its id
        return result


def executed(network, image):
    """The lines of one forward pass, in the mode that the network is in; a network and an image on the meta device cost nothing."""
    return [line for line, _ in executed_with_shapes(network, image)]


def executed_with_shapes(network, image):
    """The lines, each with the shape of its result."""
    with torch.no_grad(), _Recorder(image) as recorder:
        network(image)
    return list(zip(recorder.lines, recorder.shapes, strict=True))


def numbered(specification):
    """The lines of a specification in short, as `executed` writes them in training.

    Each of its lines is "name: operators, one after the other <- names of what they are given". Of its operators, "dropout" and
    "lrn" stand for what they are made of.
    """
    lines, ends = [], {"image": "image"}

    def step(text, *sources):
        lines.append(f"{text} <- {', '.join(map(str, sources))}")
        return len(lines)

    for line in filter(None, map(str.strip, specification.splitlines())):
        name, _, rest = line.partition(": ")
        chain, _, given = rest.partition(" <- ")
        at = [ends[source] for source in given.split(", ")]
        for text in chain.split(", "):
            if text == "dropout":  # the map times a mask of its own size, drawn and scaled
                at = [step("mul", at[0], step("div_", step("bernoulli_", at[0])))]
            elif text == "lrn":
                total = step("add 1", step("mul 0.0001", step("avgpool k5x1 s1 p2x0", step("pow", at[0]))))
                at = [step("div", at[0], step("pow", total))]
            else:
                at = [step(text, *at)]
        ends[name] = at[0]
    return lines


def operators(lines):
    """How often each operator occurs, by its first word."""
    return Counter(line.split()[0] for line in lines)
