"""A sweep before it starts: points that make no run, and what fits on a cluster."""

import pytest

from cluster.resources import run_resources as resources
from cluster.sweep.journal import Trial
from cluster.sweep.plan import TRIAL_RESOURCES, local_concurrency, runs_that_fit
from kdcore.errors import Refused
from tests.cluster.sweep.conftest import KD, MSE, PAIRS, planned, scores


def test_a_point_that_makes_no_run(recipes):
    """One is noted and fails alone; a sweep of nothing else is refused."""
    wrong = [{"student": "layer2", "teacher": "layer9"}]
    space = {"layers": {"pairs": [PAIRS, wrong]}}
    plan = planned(recipes(method=[*KD, MSE]), scores(layer2=1.0, layer9=1.0), space=space)
    ((point, problem),) = plan.problems.items()
    assert "layer9" in point
    assert "CifarResNet has no tap 'layer9'; did you mean layer3" in problem
    with pytest.raises(Refused, match="no tap 'layer9'"):
        plan.config(Trial("t", 1, {"layers": wrong}, 0))
    with pytest.raises(Refused, match=r"none of the sweep's points makes a run: .*unknown key 'optimizer.rl'"):
        planned(recipes(), space={"optimizer.rl": [1, 2]})


def test_no_cluster_is_filled_with_drivers(recipes):
    """The process of a trial takes no core of those that its workers wait for."""
    config = recipes(scaling__num_workers=2, scaling__cpus_per_worker=1.5)
    assert resources(config)["CPU"] == 3
    assert TRIAL_RESOURCES["CPU"] == 0
    assert [runs_that_fit(config, {"CPU": cpus}) for cpus in (2.9, 3, 8, 9)] == [0, 1, 2, 3]
    assert resources(recipes())["CPU"] == 1  # num_workers 0: a worker all the same
    assert local_concurrency(config, 5) == 5
