"""The results of `ops.benchmarks.gpu` as a table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Timing = dict[str, Any]


def gpu_table(found: dict[str, Any]) -> str:
    """Return each comparison of two ways, with their times, the ratio, and where it was measured."""
    lines = ["| what | A | B | A / B |", "|---|--:|--:|--:|"]
    lines += [f"| {' | '.join(cells)} |" for cells in rows(found)]
    return (
        "\n".join(lines)
        + "\n\nMedian [lowest, highest] of 5, of whole runs 3.\n"
        + "".join(f"\n* {line}" for line in notes(found))
        + "\n"
    )


def rows(found: dict[str, Any]) -> Iterator[list[str]]:
    """Yield the cells of a row for every comparison made."""
    if made := measured(found, "graphs"):
        yield pair("a step from the resident loader, resnet56 > resnet20", made, "launched", "graph", "as a CUDA graph")
    for name, made in measured(found, "deterministic").items():
        yield pair(f"a step, {name}", made, "on", "off", "`train.deterministic: false`")
    for name, made in measured(found, "streams").items():
        yield pair(f"a step, {name}", made, "before", "beside", "the teacher on a stream of its own")
    for name, made in measured(found, "weights").items():
        how = "its weights kept in bfloat16" + ("" if made["same_logits"] else " (other logits)")
        yield pair(f"the teacher's pass in bfloat16, {name}", made, "cast", "kept", how)
    for name, made in measured(found, "train").items():
        how = "`train.cuda_graph: true`" + ("" if made["same_losses"] else " (other losses)")
        yield pair(f"a step of a run of `train`, {name}", made, "launched", "graph", how)
    for name, made in measured(found, "optimizers").items():
        yield pair(f"the optimiser's step, {name}", made, "default", "fused", "fused")
    if made := measured(found, "decode"):
        yield pair("256 crops of 224 px, 8 threads", made, "cpu", "gpu", "`data.decode: gpu`")


def pair(what: str, made: dict[str, Timing], one: str, other: str, how: str) -> list[str]:
    """Return the cells of two ways to do the same."""
    ratio = made[one]["median"] / made[other]["median"]
    return [what, text(made[one]), f"{how}: {text(made[other])}", f"{ratio:.2f}"]


def text(timing: Timing) -> str:
    """Return a timing in milliseconds."""
    low, high = timing["range"]
    return f"{timing['median']:.3g} [{low:.3g}, {high:.3g}] ms"


def notes(found: dict[str, Any]) -> Iterator[str]:
    """Yield what is not a comparison of times: pictures, rates, waits, and where all of it was measured."""
    if made := measured(found, "regions"):
        yield (
            f"{made['regions']:,} regions of {made['images']} JPEGs decoded on the GPU: {made['regions_wrong']} wrong, "
            f"the worst {made['mean_of_255']['100%']:.2f} of 255 from the CPU's in its mean, "
            f"{made['largest_pixel_of_255']:.0f} in a pixel{of_nvjpeg(made)}"
        )
    for name, made in measured(found, "evaluation").items():
        what = {"validation": "validation of resnet18", "cache": "a cache of resnet34's logits and last map"}[name]
        yield f"{what} at 224 px: {made['images_per_second']:,.0f} images/s"
    if made := measured(found, "waits"):
        yield f"the host waits for the device {max(one['waits'] for one in made.values())} times in a step"
    parts: dict[str, list[str]] = {}
    for name, part in found.items():
        parts.setdefault(place_of(part["facts"]), []).append(name)
    yield from (f"{', '.join(names)}: {place}" for place, names in parts.items())


def place_of(facts: dict[str, Any]) -> str:
    """Return when and where a part was measured."""
    packages = {"torch": facts["packages"]["torch"], "DALI": facts["packages"]["nvidia-dali-cuda130"]}
    installed = [f"{name} {version}" for name, version in packages.items() if version]
    return ", ".join([facts["date"], *facts["gpus"], facts["machine"], *installed])


def of_nvjpeg(made: dict[str, Any]) -> str:
    """Return the version of nvJPEG, and how often it left a region to another decoder; empty if unknown."""
    if "nvjpeg" not in made:
        return ""
    return f"; by nvJPEG {made['nvjpeg']}, which declined {made['times_declined']} times"


def measured(found: dict[str, Any], part: str) -> dict[str, Any]:
    """Return a part's numbers; empty where it has not run, or has failed."""
    content = {name: one for name, one in found.get(part, {}).items() if name not in ("facts", "seconds")}
    return {} if "error" in content else content
