"""The sheet of sample views that `show --picture` draws."""

import numpy as np
from PIL import Image

from cluster.recipe.reading import parse
from ops.inspection import save_views


def test_views_of_several_sizes_are_drawn_in_one(recipe, tmp_path):
    """They were stacked as they came: a traceback."""
    views = {"views__num_views": 3, "views__sizes": [[0, 8], [1, 24]]}
    save_views(parse(recipe(data__loader="reference", **views)), tmp_path / "views.png")
    assert np.asarray(Image.open(tmp_path / "views.png")).shape == (6 * (16 + 2) + 2, 4 * (16 + 2) + 2, 3)
