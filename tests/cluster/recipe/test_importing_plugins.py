"""A plug-in that does not import, or whose name is none, is refused in a line, with the place in it."""

import re
import sys
from pathlib import Path

import pytest
import torch

from cluster.recipe.plugins import import_plugins
from cluster.recipe.reading import parse
from kdcore.batch import Needs, TeacherOutputs
from kdcore.errors import Refused
from kdcore.terms import TermInputs
from tests.own_code import plugin

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import not_there_at_all", "imports 'not_there_at_all', which is not installed"),
        ("def broken(:", r"does not import \(SyntaxError: .*my_plugin.py:1\); correct it, or leave it out"),
        ("x = 1\n1 / 0", r"does not import \(ZeroDivisionError: division by zero at .*/my_plugin.py:2\)"),
        (
            "import json\ndef read():\n    return json.loads('{')\nread()",
            r"does not import \(JSONDecodeError: .* at .*/my_plugin.py:3\)",
        ),
        (
            "from kdcore.terms import Term\nclass Mine(Term):\n    term = 'my_loss'\n",
            r"\(Field 'term' .* by a non-annotated attribute at .*/my_plugin.py:2\); write every field with its type, "
            r"such as term: Literal\[\"my_loss\"\] = \"my_loss\"$",
        ),
        (
            "from typing import Literal\nfrom kdcore.terms import Term\nclass Mine(Term):\n"
            "    term: Literal['my_loss'] = 'my_loss'\n    scale = 1.0\n",
            r"\(A non-annotated attribute was detected: `scale = 1.0` at .*:3\); write every field with its type",
        ),
        ("import sys; sys.exit(3)", r"does not import \(SystemExit: 3"),
        (
            "from kdcore.terms import Term\nclass Mine(Term):\n    term: str = 'kd'\n",
            "two terms are called 'kd': kdcore.terms.logits.*my_plugin.Mine; rename one",
        ),
        (
            "from kdcore.terms import Term\nclass One(Term):\n    term: str = 'one'\n"
            "class Two(Term):\n    term: str = 'one'\n",
            "two terms are called 'one': my_plugin.One and my_plugin.Two; rename one",
        ),
        (
            "from timm.models import register_model\n@register_model\ndef resnet50(pretrained=False): pass\n",
            "UserWarning: Overwriting resnet50 in registry",
        ),
        (
            "from timm.optim import OptimInfo\nfrom timm.optim._optim_factory import default_registry\nimport torch\n"
            "default_registry.register(OptimInfo(name='adamw', opt_class=torch.optim.SGD))\n",
            "Optimizer adamw already registered; give it a name of its own",
        ),
        (
            "from cluster.tracking import tensorboard_tracker\nfrom cluster.tracking.tracker import Tracker\n"
            "class T(Tracker):\n    name = 'tensorboard'\n",
            "two trackers are called 'tensorboard'",
        ),
        (
            "from pipelines.data.kinds import Kind, register\nregister(Kind('CSV', None, None))",
            "two kinds of images are called 'CSV'; rename one",
        ),
    ],
)
def test_what_does_not_import_is_refused_in_a_line(tmp_path, text, message):
    path = plugin(tmp_path, text)
    with pytest.raises(Refused, match=message) as refused:
        import_plugins([path])
    assert "\n" not in str(refused.value)
    assert "my_plugin" in str(refused.value)
    assert "my_plugin" not in sys.modules


def test_the_loss_that_the_readme_shows(tmp_path, recipe):
    """As it stands there: a field of its own, and one value per image, which is computed."""
    (shown,) = re.findall(r"```python\n([^`]*class \w+\(Term\).*?)```", (ROOT / "cluster/README.md").read_text(), re.S)
    method = [{"term": "my_loss", "weight": 1.0, "scale": 2.0}]
    teacher = {"model": "cifar_resnet8", "random": True}
    config = parse(recipe(plugins=[plugin(tmp_path, shown, "my_losses")], method=method, teacher=teacher))
    (term,) = config.method
    logits = torch.tensor([[1.0, 3.0], [0.0, 0.0]])
    inputs = TermInputs(torch.tensor([0, 1]), logits, TeacherOutputs(torch.zeros(2, 2)))
    assert term.needs() == Needs(teacher_logits=True)
    assert term.loss(inputs).tolist() == [4.0, 0.0]


def test_names_that_are_none(tmp_path):
    with pytest.raises(Refused, match=r"there is no module 'my_package.distil'; give its whole dotted name, a file"):
        import_plugins(["my_package.distil"])
    with pytest.raises(Refused, match=rf"{re.escape(str(Path.cwd()))}/nowhere\.py is neither a Python file nor a"):
        import_plugins(["./nowhere.py"])
    with pytest.raises(Refused, match="'my-losses' is not a module name; rename it, such as my_my_losses"):
        import_plugins([plugin(tmp_path, "", "my-losses")])
    with pytest.raises(Refused, match=r"would take the place of the module 'json' \(.*json/__init__.py\); rename it"):
        import_plugins([plugin(tmp_path, "", "json")])
