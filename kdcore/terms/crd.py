"""Contrastive representation distillation: a student's embedding must pick its own teacher's out of thousands.

Both networks' embeddings of every training sample are kept in a bank, by sample id. The bank is a buffer, so it is in
every checkpoint, and it is the same on all ranks: it is written once per optimiser step, after the last
micro-batch, with the embeddings of all ranks' micro-batches. So every micro-batch of a step sees the bank that the step
before has left, and its loss is the same on any number of ranks, however many micro-batches each of them runs. A
data-parallel wrapper should not broadcast buffers at every step (broadcast_buffers=False).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdcore.batch import Needs
from kdcore.errors import Refused
from kdcore.terms.base import SteppedModule, TermContext, TermInputs
from kdcore.terms.draws import DrawingTerm, Draws, DrawSource
from kdcore.terms.precision import embed, full_precision

_EPSILON = 1e-7


@full_precision
def nce(positive: Tensor, negatives: Tensor, noise: float) -> Tensor:
    """Return -log(p / (p + m noise)) - sum_j log(m noise / (n_j + m noise)): [B] nats.

    positive p [B], negatives n_j [B,m]: unnormalised likelihoods, already divided by their constant; noise: the
    probability of a sample under the noise distribution, 1 / num_samples.
    Source: Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020, arXiv 1910.10699, equation 18.
    """
    m = negatives.shape[1]
    of_positive = torch.log(positive / (positive + m * noise + _EPSILON))
    of_negatives = torch.log(m * noise / (negatives + m * noise + _EPSILON)).sum(dim=1)
    return -(of_positive + of_negatives)


@full_precision
def likelihoods(embeddings: Tensor, bank: Tensor, samples: Tensor, temperature: float) -> Tensor:
    """Return exp(<embeddings_b, bank[samples_bj]> / temperature): [B,J].

    embeddings [B,D]; bank [N,D]; samples [B,J].
    """
    return (torch.einsum("bd,bjd->bj", embeddings, bank[samples]) / temperature).exp()


class ClassIndex(nn.Module):
    """Draws training samples of other classes than a given sample's, uniformly and without rejection.

    Sample ids are kept sorted by class; a draw among the num_samples - (size of the class) others steps over the class.
    fewest_others: samples outside the largest class.
    """

    labels: Tensor
    by_class: Tensor
    starts: Tensor
    sizes: Tensor

    def __init__(self, labels: Tensor, num_classes: int) -> None:
        super().__init__()
        sizes = torch.bincount(labels, minlength=num_classes)
        if int(sizes.max()) == len(labels):
            raise Refused("the training set has one class only: CRD finds no negatives in other classes")
        for name, buffer in {
            "labels": labels,
            "by_class": labels.argsort(stable=True),
            "starts": sizes.cumsum(0) - sizes,
            "sizes": sizes,
        }.items():
            self.register_buffer(name, buffer, persistent=False)
        self.fewest_others = len(labels) - int(sizes.max())

    def others(self, sample_ids: Tensor, draws: Draws, count: int) -> Tensor:
        """Draw [B,count] sample ids, different in each row unless count is more than `fewest_others`."""
        classes = self.labels[sample_ids]
        numbers = len(self.labels) - self.sizes[classes]
        if count <= self.fewest_others:
            places = draws.distinct(numbers, count, self.fewest_others)
        else:
            places = draws.below(numbers, count)
        step = self.sizes[classes][:, None] * (places >= self.starts[classes][:, None])
        return self.by_class[places + step]


class CRD(DrawingTerm):
    """Contrastive representation distillation (CRD) between the two classifier inputs, usually at weight 0.8.

    Each vector is embedded by a linear layer (the teacher's is trained too) and set to length 1. `nce` is summed over
    both directions: the student's embedding against the teacher's bank, and the reverse. The negatives of a sample are
    different ones, as in the authors' code, unless more are asked for than there are. Reads
    TermContext.sample_labels and TermInputs.epoch. Memory: 2 * num_samples * dim floats for the bank (1.3 GB for
    ImageNet) and 2 * B * num_negatives * dim until the backward pass (1.1 GB for a micro-batch of 64).
    """

    term: Literal["crd"] = "crd"
    student_tap: str = "classifier_input"
    """Tap of the student that gives one vector a sample."""
    teacher_tap: str = "classifier_input"
    """Tap of the teacher that gives one vector a sample."""
    dim: int = Field(default=128, ge=1)
    """Width of the embeddings, and so of the bank."""
    num_negatives: int = Field(default=16384, ge=1)
    """Number of other samples that each sample is compared with."""
    momentum: float = Field(default=0.5, ge=0, lt=1)
    """Share of the old entry that stays when a sample's entry in the bank is renewed."""
    temperature: float = Field(default=0.07, gt=0)
    """Divisor of the cosines before they are exponentiated."""
    negatives: Literal["other_classes", "all"] = "other_classes"
    """Where negatives come from: samples of other classes, as in the published tables, or all samples."""

    def needs(self) -> Needs:
        """Return what this term reads: a vector of each network, which samples they are of, and the labels of those."""
        return Needs(
            student_taps=frozenset({self.student_tap}),
            teacher_taps=frozenset({self.teacher_tap}),
            sample_ids=True,
            labels=self.negatives == "other_classes",
            unmixed=True,
        )

    def build(self, context: TermContext) -> nn.Module:
        """Build the term with its embeddings and bank."""
        return CRDModule(self, context)


class CRDModule(SteppedModule):
    """The embeddings and the bank of `CRD`.

    banks [2,N,D]: the student's and the teacher's; constants [2]: what the likelihoods of each direction are divided
    by, estimated once, from the first micro-batch of rank 0 (the same samples whatever the number of ranks). kept: the
    sample ids [B] and embeddings [B,2,D] of this rank's micro-batches, until the step ends.
    """

    banks: Tensor
    constants: Tensor

    def __init__(self, config: CRD, context: TermContext) -> None:
        super().__init__()
        self.config = config
        self.num_samples = context.num_samples
        self.student_embedding = nn.Linear(_width(context.student_shapes, config.student_tap), config.dim)
        self.teacher_embedding = nn.Linear(_width(context.teacher_shapes, config.teacher_tap), config.dim)
        self.source = DrawSource.of(config, context)
        self.register_buffer("banks", initial_banks(context.num_samples, config.dim, self.source.seed))
        self.register_buffer("constants", torch.zeros(2))
        self.class_index = _class_index(context) if config.negatives == "other_classes" else None
        self.are_constants_fixed = False  # as known to the host, so that no step waits for the device
        self.kept: list[tuple[Tensor, Tensor]] = []
        self.register_load_state_dict_post_hook(_look_again)

    def forward(self, inputs: TermInputs) -> Tensor:
        """Return the loss of both directions: [B] nats. In training, the new embeddings are kept for the bank."""
        assert inputs.sample_ids is not None, "the term did not declare sample_ids"
        student = _embed(self.student_embedding, inputs.student_features[self.config.student_tap])
        teacher = _embed(self.teacher_embedding, inputs.teacher.features[self.config.teacher_tap])
        samples = torch.cat([inputs.sample_ids[:, None], self.draw_negatives(inputs)], dim=1)
        directions = torch.stack(
            [
                likelihoods(anchor, bank, samples, self.config.temperature)
                for anchor, bank in ((student, self.banks[1]), (teacher, self.banks[0]))
            ]
        )
        self.fix_constants(directions)
        if self.training:
            self.kept.append((inputs.sample_ids, torch.stack([student, teacher], dim=1).detach()))
        of_student, of_teacher = directions / self.constants[:, None, None]
        noise = 1 / self.num_samples
        return nce(of_student[:, 0], of_student[:, 1:], noise) + nce(of_teacher[:, 0], of_teacher[:, 1:], noise)

    def draw_negatives(self, inputs: TermInputs) -> Tensor:
        """Draw [B,num_negatives] sample ids, a function of the seed, the epoch, and each row's own id and view."""
        assert inputs.sample_ids is not None
        draws = self.source.draws(inputs)
        if self.class_index is not None:
            return self.class_index.others(inputs.sample_ids, draws, self.config.num_negatives)
        numbers = torch.full_like(inputs.sample_ids, self.num_samples)
        if self.config.num_negatives <= self.num_samples:
            return draws.distinct(numbers, self.config.num_negatives, self.num_samples)
        return draws.below(numbers, self.config.num_negatives)

    @torch.no_grad()
    def fix_constants(self, directions: Tensor) -> None:
        """Set the constants to num_samples * mean likelihood, the first time. directions [2,B,J]."""
        if self.are_constants_fixed:
            return
        self.are_constants_fixed = True
        if bool((self.constants == 0).all()):
            self.constants.copy_(directions.mean(dim=(1, 2)) * self.num_samples)
            if data_parallel():
                dist.broadcast(self.constants, src=0)

    @torch.no_grad()
    def end_step(self) -> None:
        """Move the bank's entries of all ranks' samples of the step towards their embeddings, and back to length 1."""
        if not self.kept:
            return
        sample_ids, embeddings = (gather_rows(torch.cat(rows)) for rows in zip(*self.kept, strict=True))
        self.kept = []
        embeddings = means_of_equal(sample_ids, embeddings)
        old = self.banks[:, sample_ids].transpose(0, 1)
        new = F.normalize(torch.lerp(embeddings, old, self.config.momentum), dim=2)
        self.banks[:, sample_ids] = new.transpose(0, 1)

    def forward_buffers(self) -> list[Tensor]:
        """Return the constants: the bank, a gigabyte for ImageNet, is written in `end_step`."""
        return [self.constants]

    def drop_step(self) -> None:
        """Forget what was kept, and whether the constants are fixed: they may have been fixed in that step."""
        self.kept, self.are_constants_fixed = [], False


def _look_again(module: nn.Module, keys: object) -> None:
    """Have a loaded module check again whether its constants are fixed."""
    assert isinstance(module, CRDModule)
    module.are_constants_fixed = False


def _width(shapes: Mapping[str, torch.Size], tap: str) -> int:
    shape = shapes[tap]
    if len(shape) != 1:
        raise Refused(f"crd embeds vectors, but tap {tap!r} has shape {list(shape)}; take classifier_input")
    return int(shape[0])


def _embed(layer: nn.Linear, features: Tensor) -> Tensor:
    return F.normalize(embed(layer, features), dim=1)


def _class_index(context: TermContext) -> ClassIndex:
    labels = context.sample_labels
    if labels is None:
        raise Refused("crd draws negatives from other classes, but the samples' labels are unknown; set negatives: all")
    if len(labels) != context.num_samples:
        raise Refused(f"{len(labels)} sample labels for {context.num_samples} training samples; pass one for each")
    return ClassIndex(labels.long(), context.num_classes)


def initial_banks(num_samples: int, dim: int, seed: int) -> Tensor:
    """Draw [2,num_samples,dim] uniform in +-sqrt(3 / dim): of length about 1, and equal on every rank."""
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.rand(2, num_samples, dim, generator=generator) - 1) * math.sqrt(3 / dim)


def means_of_equal(sample_ids: Tensor, rows: Tensor) -> Tensor:
    """Return each row [B,...] as the mean of all rows of its sample; a single row stays as it is, to the bit.

    Summed in float64, where the order of these few shows in no bit, and without the host knowing which are equal.
    """
    in_order, order = sample_ids.sort(stable=True)
    begins = torch.ones_like(in_order)
    begins[1:] = in_order[1:] != in_order[:-1]
    group = torch.empty_like(order).scatter_(0, order, begins.cumsum(0) - 1)
    sums = torch.zeros_like(rows, dtype=torch.float64).index_add_(0, group, rows.double())
    counts = torch.zeros_like(group).index_add_(0, group, torch.ones_like(group))
    return (sums[group] / counts[group].view(-1, *[1] * (rows.ndim - 1))).to(rows.dtype)


def data_parallel() -> bool:
    """Return whether there are other ranks in the training."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gather_rows(rows: Tensor) -> Tensor:
    """Gather the rows of all ranks, in rank order; ranks may hold different numbers of them."""
    if not data_parallel():
        return rows
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    lengths = [int(count) for count in counts]
    padded = rows.new_zeros(max(lengths), *rows.shape[1:])
    padded[: len(rows)] = rows
    gathered = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(gathered, padded)
    return torch.cat([part[:length] for part, length in zip(gathered, lengths, strict=True)])
