"""The texts of the methods' settings, which `--help` shows: none is missing, and one name has one text."""

from __future__ import annotations

import dataclasses
from collections import defaultdict

import pytest

from rlsuite import algorithms
from rlsuite.commands.options import field_texts

BUFFERED = ("ppo_buffer", "props", "ros")
ON_POLICY = ("mdpo", "ppo", *BUFFERED)

DIFFERS: dict[str, dict[tuple[str, ...], str]] = {
    "actor_learning_rate": {("iql",): "falls over the budget"},
    "beta": {("prdc",): "is the weight of a distance; IQL's is an inverse temperature. Both are the papers' names"},
    "clip_epsilon": {("mdpo",): "clips the value alone"},
    "critic_learning_rate": {("mdpo_off_policy",): "is also that of V"},
    "entropy_coef": {("mdpo_off_policy",): "also counts in V's target, as in SAC; PPO's is a bonus of the loss"},
    "max_grad_norm": {("mdpo",): "does not concern the value network"},
    "normalize_advantage": {("mdpo",): "concerns the rollout, which its policy learns from as a whole"},
    "normalize_obs": {ON_POLICY: "has no dataset, so that statistics run", ("prdc",): "also changes distances"},
    "normalize_reward": {ON_POLICY: "has no dataset, so that statistics run"},
    "num_epochs": {("mdpo",): "concerns the value network alone; the policy takes full-batch steps"},
    "num_minibatches": {
        ("mdpo",): "concerns the value network alone",
        BUFFERED: "divides a buffer of several rollouts",
    },
    "policy_delay": {
        ("dsac", "dsac_t"): "also delays the temperature",
        ("sac",): "delays no targets, and the actor catches up",
    },
    "sgd_steps": {("mdpo_off_policy",): "counts environment steps on one old policy, on-policy MDPO's gradient steps"},
    "target_entropy_scale": {("cql", "edac"): "concerns densities in units of the action box"},
    "temperature": {("cql",): "softens a maximum; AWAC's divides advantages"},
    "tsallis_q": {("mdpo_off_policy",): "is also the order of the entropy, and read without a flag"},
    "warmup_steps": {("dsac", "dsac_t"): "acts with the initial policy"},
}
"""name -> the methods that mean something else by it, and in what it differs from what the others mean"""


def texts_of(method: str) -> dict[str, str]:
    """Every field of the method's `Config` and `Hypers` -> its text, "" where there is none."""
    spec = algorithms.get(method)
    config_fields = [field.name for field in dataclasses.fields(spec.config)]
    hypers_fields = spec.hypers._fields  # type: ignore[attr-defined]
    texts = field_texts(spec.config) | field_texts(spec.hypers)
    return {name: texts.get(name, "") for name in (*config_fields, *hypers_fields)}


# The methods of this repository, not those of other packages, which have names of their own.
METHODS = (*(method.rpartition(".")[2] for method in algorithms.METHODS), "td3_bc+cdsa")


@pytest.mark.parametrize("method", METHODS)
def test_every_setting_has_a_text(method: str) -> None:
    assert [name for name, text in texts_of(method).items() if not text.strip()] == []


def test_a_name_has_one_text_unless_its_meaning_differs() -> None:
    # name -> group of methods -> the texts in that group; () is the group of all that are not in the table.
    texts: dict[str, dict[tuple[str, ...], set[str]]] = defaultdict(lambda: defaultdict(set))
    for method in METHODS:
        for name, text in texts_of(method).items():
            group = next((methods for methods in DIFFERS.get(name, {}) if method in methods), ())
            texts[name][group].add(text)
    several = {name: found for name, groups in texts.items() for found in groups.values() if len(found) > 1}
    assert several == {}, "one name, one text: write it alike, or say in DIFFERS what is different"
    for name, groups in DIFFERS.items():
        assert set(texts[name]) == {(), *groups}, f"DIFFERS names methods that have no {name}"
        assert len(set.union(*texts[name].values())) == 1 + len(groups), f"{name} means the same where DIFFERS says not"
        for group in groups:
            assert all(name in texts_of(method) for method in group), (name, group)


@pytest.mark.parametrize("method", METHODS)
def test_texts_read_as_entries_of_a_list(method: str) -> None:
    for name, text in texts_of(method).items():
        assert not text.endswith("."), (name, text)
        assert not text.startswith(("of ", "what ", "how ")), (name, text)
