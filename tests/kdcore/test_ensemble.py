"""Several teachers: the average by an independent formula, weights' courses, and terms that read one of them."""

import pytest
import torch

from kdcore.batch import Batch, TeacherOutputs
from kdcore.configs import ModelConfig
from kdcore.distiller import Distiller
from kdcore.ensemble import Combination, Ensemble
from kdcore.errors import Refused
from kdcore.models import build_model
from kdcore.online_teacher import OnlineTeacher
from kdcore.terms import parse_term

IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
BATCH = Batch(IMAGES, torch.arange(4) % 3, torch.arange(4), torch.zeros(4, dtype=torch.int64), epoch=0.0)


def logits(seed: int) -> torch.Tensor:
    return 3 * torch.randn(5, 4, generator=torch.Generator().manual_seed(seed))


A, B = logits(1), logits(2)
WEIGHTS = {"a": lambda epoch: 3.0, "b": lambda epoch: 1.0}


def entropy(z: torch.Tensor) -> torch.Tensor:
    return torch.distributions.Categorical(logits=z).entropy()


def test_of_logits():
    found = Combination(WEIGHTS).logits({"a": A, "b": B}, 0.0)
    torch.testing.assert_close(found, 0.75 * A + 0.25 * B)


def test_of_probabilities():
    found = Combination(WEIGHTS, "probabilities").logits({"a": A, "b": B}, 0.0)
    torch.testing.assert_close(found.softmax(1), 0.75 * A.softmax(1) + 0.25 * B.softmax(1))


@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_by_confidence(average):
    """A teacher's weight for an image falls by exp(-entropy)."""
    found = Combination(WEIGHTS, average, "confidence").logits({"a": A, "b": B}, 0.0)
    a, b = 3 * torch.exp(-entropy(A)), torch.exp(-entropy(B))
    share = (a / (a + b))[:, None]
    if average == "logits":
        torch.testing.assert_close(found, share * A + (1 - share) * B)
    else:
        torch.testing.assert_close(found.softmax(1), share * A.softmax(1) + (1 - share) * B.softmax(1))


def test_one_alone_is_itself():
    """Bit by bit, so that an ensemble of one trains as its teacher; so does one whose others have weight 0."""
    assert torch.equal(Combination({"a": lambda epoch: 0.3}).logits({"a": A}, 0.0), A)
    assert torch.equal(Combination({"a": lambda epoch: 2.0, "b": lambda epoch: 0.0}).logits({"a": A, "b": B}, 0.0), A)


def test_weights_follow_their_course():
    course = Combination({"a": lambda epoch: 1 - epoch / 10, "b": lambda epoch: epoch / 10})
    torch.testing.assert_close(course.logits({"a": A, "b": B}, 0.0), A)
    torch.testing.assert_close(course.logits({"a": A, "b": B}, 5.0), (A + B) / 2)


def network(seed: int, classes: int = 3) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build_model(
        ModelConfig(model="cifar_resnet8", args={"widths": [4, 4, 8, 16]}), [str(c) for c in range(classes)]
    )


def ensemble(methods: dict[str, list[dict]], averages: bool = True) -> Ensemble:
    online = {}
    for seed, (name, terms) in enumerate(methods.items()):
        needs = parse_term(terms[0]).needs()
        for term in terms[1:]:
            needs = needs | parse_term(term).needs()
        online[name] = OnlineTeacher(network(seed), needs)
    weights = dict.fromkeys(online, lambda epoch: 1.0)
    shapes = {name: teacher.taps.shapes((16, 16)) for name, teacher in online.items()}
    return Ensemble(online, Combination(weights), averages, shapes)


def distiller(teacher, *terms: dict) -> Distiller:
    student = network(7)
    return Distiller(
        student, [parse_term(t) for t in terms], image_size=(16, 16), num_samples=4, teacher=teacher, num_epochs=1
    )


KD = {"term": "kd", "weight": 1.0, "temperature": 2.0}


def test_terms_read_the_average_or_their_own():
    """The losses are those of single teachers, and of one that answers with the mean."""
    teachers = ensemble({"a": [KD], "b": [KD]})
    found = distiller(teachers, KD, {**KD, "teacher": "b"})(BATCH).terms
    alone = distiller(teachers.online["b"], KD)(BATCH).terms
    assert torch.equal(found["kd_2"], alone["kd"])
    answers = [teachers.online[name](BATCH).logits for name in "ab"]
    mean = distiller(None, KD)(BATCH.with_targets(TeacherOutputs(logits=(answers[0] + answers[1]) / 2))).terms
    torch.testing.assert_close(found["kd"], mean["kd"])


def test_stored_answers_are_not_asked_for_again():
    """Equal bits, whether a member answers beside the student or its answers come with the batch."""
    teachers = ensemble({"a": [KD], "b": [KD]})
    both = distiller(teachers, KD)(BATCH).loss
    kept = TeacherOutputs(members={"a": teachers.online["a"](BATCH)})
    others = Ensemble({"b": teachers.online["b"]}, teachers.combination, True, teachers.shapes)
    assert torch.equal(distiller(others, KD)(BATCH.with_targets(kept)).loss, both)
    none = Ensemble({}, teachers.combination, True, teachers.shapes)
    kept = TeacherOutputs(members={name: teachers.online[name](BATCH) for name in "ab"})
    assert torch.equal(distiller(none, KD)(BATCH.with_targets(kept)).loss, both)


def test_features_of_one():
    fitnet = {"term": "fitnet", "weight": 1.0, "pairs": [{"student": "layer2", "teacher": "layer3"}], "teacher": "b"}
    teachers = ensemble({"a": [KD], "b": [KD, fitnet]})
    assert distiller(teachers, KD, fitnet)(BATCH).terms.keys() == {"kd", "fitnet"}
    with pytest.raises(
        Refused, match="fitnet reads more than logits, and only logits are averaged over teachers; name"
    ):
        distiller(teachers, {**fitnet, "teacher": None})
    with pytest.raises(Refused, match="term kd: no teacher is called 'c'; the teachers are a, b"):
        distiller(teachers, {**KD, "teacher": "c"})
    with pytest.raises(Refused, match=r"leave out `teacher`, as there is only one"):
        distiller(OnlineTeacher(network(1), parse_term(KD).needs()), {**KD, "teacher": "c"})
