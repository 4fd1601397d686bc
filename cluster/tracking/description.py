"""A run's title and tags, for people who look for it: names, method, networks, commit, packages."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from functools import cache

from cluster.provenance import Provenance
from cluster.recipe.config import RunConfig
from cluster.recipe.plugins import fingerprints_of
from kdcore.configs import ModelConfig
from kdcore.named_models import LOCAL_DIR, short_name

WEIGHTS = "weights."  # begins the tags that have the fingerprints of the weights that a run starts from


def run_title(config: RunConfig) -> str:
    """Return a run's name for people: 'kd-seed0: ce+kd, resnet34 > resnet18'."""
    return f"{config.name}: {method_name(config)}, {network_pair(config)}"


def method_name(config: RunConfig) -> str:
    """Return the names of the terms that count: 'ce+kd'."""
    return "+".join(term.term for term in config.method if term.weight > 0)


def network_pair(config: RunConfig) -> str:
    """Return the names of teacher and student: 'resnet34 > resnet18'."""
    student = network_name(config.student)
    return f"{teacher_names(config)} > {student}" if config.all_teachers else student


def teacher_names(config: RunConfig) -> str:
    """Return the names of the teachers' networks: 'resnet34', or of several 'resnet34+vit_small'."""
    return "+".join(network_name(teacher) for teacher in config.all_teachers)


def network_name(model: ModelConfig) -> str:
    """Return a network's name, without the path of a folder."""
    return short_name(model.model) if model.model.startswith(LOCAL_DIR) else model.model


def run_tags(config: RunConfig) -> dict[str, str]:
    """Return the tags by which runs are looked for."""
    plugins = ", ".join(f"{name} {source[:12]}" for name, source in fingerprints_of(config).items())
    return {
        "run": config.name,
        "method": method_name(config),
        "pair": network_pair(config),
        "student": network_name(config.student),
        "teacher": teacher_names(config) or "none",
        "data": config.data.name,
        "seed": str(config.seed),
        **({"plugins": plugins} if plugins else {}),
    }


def weights_tags(config: RunConfig, fingerprints: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Return {weights.FIELD: fingerprint} of the files that a run starts from, wherever they lie.

    fingerprints: as `RunFolder.weights_fingerprints` gives them.
    """
    fields = {f"teachers.{member.name}": f"teachers.{number}" for number, member in enumerate(config.teachers)}
    return {
        f"{WEIGHTS}{fields.get(network, network)}.{what}": fingerprint
        for network, found in fingerprints.items()
        for what, fingerprint in found.items()
    }


def about_paragraphs(config: RunConfig) -> list[str]:
    """Return what a recipe says about itself as paragraphs for the run's page; the whole is in its recipe.yaml."""
    about = config.about
    return [part for part in (about.title, about.paper, f"Published: {about.expected}") if part] if about else []


def git_commit() -> str:
    """Return the commit of the code, with '-dirty' where files differ from it; 'unknown' where nothing says it."""
    return Provenance.of_tree().commit


@cache
def packages() -> str:
    """Return every installed distribution as name==version, one per line; read once, since a sweep opens many runs."""
    found = {f"{d.metadata['Name']}=={d.version}" for d in importlib.metadata.distributions()}
    return "\n".join(sorted(found, key=str.lower)) + "\n"
