"""The picture of a run's first batch: what each image is, and what the teacher takes it for."""

import numpy as np
import torch
from PIL import Image

from cluster.tracking.captions import CELL, captions_of
from cluster.tracking.pictures import first_batch
from kdcore.batch import Batch

CLASSES = ("cat", "dog", "eel")
LOGITS = torch.tensor([[0.0, 4.0, 0.0], [9.0, 0.0, 0.0]])


def batch(labels: torch.Tensor) -> Batch:
    """Two images of one colour each, 8 x 16 pixels."""
    images = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])[:, :, None, None].expand(2, 3, 8, 16)
    return Batch(images, labels, torch.arange(2), torch.zeros(2, dtype=torch.int64))


def test_a_caption_has_the_label_and_the_teachers_likeliest_class_with_its_share():
    said = captions_of(batch(torch.tensor([1, 2])), CLASSES, LOGITS)
    assert said == [["dog", "teacher: dog 96%"], ["eel", "teacher: cat 100%"]]


def test_a_mixed_image_has_the_labels_of_both():
    labels = torch.tensor([[0.3, 0.7, 0.0], [0.0, 0.0, 1.0]])
    assert captions_of(batch(labels), CLASSES, None) == [["70% dog + 30% cat"], ["100% eel"]]


def test_the_picture_shows_the_images_with_words_below(tmp_path):
    path = tmp_path / "first_batch.png"
    first_batch(batch(torch.tensor([1, 2])), ((0.0,) * 3, (1.0,) * 3), path, CLASSES, LOGITS)
    picture = np.asarray(Image.open(path)).astype(int)
    assert picture[10, 20].tolist() == [255, 0, 0]
    assert picture[10, 20 + CELL].tolist() == [0, 0, 255]
    words = picture[6 + CELL : 6 + CELL + 28, 6 : 6 + CELL]
    assert (words < 128).any()
    assert (picture[6 + CELL + 28 :] == 255).all()
