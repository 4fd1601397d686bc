"""How many kernels a GPU would be asked for, counted on CPU tensors: torch's operators that do work of their own."""

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile

# What only looks at memory, hands it out, or calls the operator that does the work.
# fmt: off
NO_KERNEL = frozenset({
    "view", "as_strided", "unsqueeze", "expand", "select", "slice", "unbind", "narrow", "flatten", "reshape",
    "_unsafe_view", "detach_", "lift_fresh", "empty", "empty_like", "empty_strided", "resize_", "to", "_to_copy",
    "clone", "contiguous", "index_put_", "pad", "constant_pad_nd", "zeros", "ones", "full_like", "zero_", "__or__",
    "__rshift__", "fill_",
})
# fmt: on


def count_kernels(run: Callable[[], object]) -> int:
    with profile(activities=[ProfilerActivity.CPU]) as found:
        run()
    names = [event.name.removeprefix("aten::") for event in found.events() if event.name.startswith("aten::")]
    assert "copy_" in names, "the profiler sees them"
    return sum(name not in NO_KERNEL for name in names)
