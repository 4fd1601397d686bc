"""Images side by side with words below each: what an image is, and what the teacher takes it for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from kdcore.batch import Batch
from pipelines.files import write_whole

COLUMNS, MAX_IMAGES = 8, 64
CELL = 132  # pixels of an image's longer side, and of the room for its words
LINE, GAP = 14, 6
MIN_SHARE_NAMED = 0.01  # share of a label above which it is named


def captioned(pixels: Tensor, captions: Sequence[Sequence[str]], path: Path) -> None:
    """Save images [N,3,H,W] in [0, 1], each with its lines of words below it."""
    lines = max(len(caption) for caption in captions)
    rows = -(-len(pixels) // COLUMNS)
    height = CELL + lines * LINE + GAP
    sheet = Image.new("RGB", (min(COLUMNS, len(pixels)) * (CELL + GAP) + GAP, rows * (height + GAP) + GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    values = (pixels.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    for number, (value, caption) in enumerate(zip(values, captions, strict=True)):
        left, top = GAP + number % COLUMNS * (CELL + GAP), GAP + number // COLUMNS * (height + GAP)
        sheet.paste(scaled(value), (left, top))
        for line, text in enumerate(caption):
            draw.text((left, top + CELL + line * LINE), fitting(text, font), fill="black", font=font)
    write_whole(path, lambda file: sheet.save(file, format=path.suffix.lstrip(".")))


def scaled(value: np.ndarray) -> Image.Image:
    """Return an image [H,W,3] whose longer side fills a cell, with visible pixels where it is small."""
    image = Image.fromarray(value)
    factor = CELL / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.NEAREST if factor > 1 else Image.Resampling.BOX)


def fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Return as much of a text as fits a cell's width."""
    if font.getlength(text) <= CELL:
        return text
    while text and font.getlength(f"{text}…") > CELL:
        text = text[:-1]
    return f"{text}…"


def captions_of(
    batch: Batch, classes: Sequence[str], teacher_logits: Tensor | None, multi_label: bool = False
) -> list[list[str]]:
    """Return each image's label, a mixed one's two, and the teacher's likeliest class with its share.

    multi_label: whether images may have several labels; all of them are named.
    """
    name = labels_of if multi_label else label_of
    said = [[name(label, classes)] for label in batch.labels.cpu()]
    if teacher_logits is not None:
        logits = teacher_logits.float()
        shares, answers = (logits.sigmoid() if multi_label else logits.softmax(dim=1)).max(dim=1)
        for lines, share, answer in zip(said, shares.tolist(), answers.tolist(), strict=True):
            lines.append(f"teacher: {classes[answer]} {share:.0%}")
    return said


def label_of(label: Tensor, classes: Sequence[str]) -> str:
    """Return a label as words: a class, or the classes of a mixed image with their shares."""
    if label.ndim == 0:
        return classes[int(label)]
    shares = sorted(((float(share), name) for share, name in zip(label, classes, strict=True)), reverse=True)
    return " + ".join(f"{share:.0%} {name}" for share, name in shares[:2] if share > MIN_SHARE_NAMED)


def labels_of(label: Tensor, classes: Sequence[str]) -> str:
    """Return several labels as words: the classes, with the shares of those that a mixed image shows in part."""
    shares = [(float(share), name) for share, name in zip(label, classes, strict=True) if share > MIN_SHARE_NAMED]
    named = [name if share > 1 - MIN_SHARE_NAMED else f"{share:.0%} {name}" for share, name in shares]
    return ", ".join(named) or "none of the classes"
