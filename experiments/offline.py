"""Offline learners: BC, TD3+BC, IQL, AWAC, CQL, ReBRAC, EDAC, SAC-N, PRDC, A2PR, and CDSA-style correction of two.

`EXPERIMENT` is for two cores: two physics tasks, three datasets of each, 32 seeds, small networks and 1500 gradient
steps; for time CQL draws 3 actions of each kind instead of 10, and EDAC and SAC-N have 5 critics. `WEIGHTING` compares
how transitions are drawn from data that are nearly all bad. Their datasets are made when they are first asked for, by
`rlsuite collect`'s recipes. On a task all learners share sizes, rates and the discount; what else a method has is
as published for D4RL. `CHOICE` is how the two rates of each task were found: by TD3+BC and IQL on its medium data, at
seeds that are not reported. So methods are compared at common settings, not each at its best. `LONGER` gives three
of them a longer budget.

`FULL` is for a GPU: `rlsuite sweep experiments/offline.py:FULL` takes a million gradient steps on datasets of three of
Gymnasium's tasks, a million transitions each, everyone with the settings of its own paper or code.
"""

import dataclasses
from typing import Any

from rlsuite import algorithms
from rlsuite.algorithms.offline import a2pr, awac, bc, cql, edac, iql, prdc, rebrac, td3_bc
from rlsuite.sweeping.sweep import Cell, Experiment

STEPS = 1500
SIZES: dict[str, Any] = {"batch_size": 64, "hidden_sizes": (64, 64)}
RATES = {"gymnax/Pendulum-v1": (1e-2, 0.02), "brax/hopper/spring": (3e-4, 0.005)}
"""environment -> the learning rate of all networks, and the target rate tau"""
CORRECTION: dict[str, Any] = {
    "model_batch_size": 64,
    "score_hidden_sizes": (64, 64),
    "dynamics_hidden_sizes": (64, 64),
}


def learners(rate: float, tau: float) -> dict[str, tuple[str, Any, Any]]:
    """label -> (algorithm, Config, Hypers), at this learning rate and target rate."""
    rates = {"actor_learning_rate": rate, "critic_learning_rate": rate, "discount": 0.99, "tau": tau}
    networks_of_cql: dict[str, Any] = {"actor_hidden_sizes": (64, 64), "critic_hidden_sizes": (64, 64)}
    networks_of_a2pr: dict[str, Any] = {
        "critic_hidden_sizes": (64, 64),
        "value_hidden_sizes": (64, 64),
        "vae_hidden_sizes": (64, 64),
    }
    edac_hypers = edac.Hypers(**rates, alpha_learning_rate=rate)
    found: dict[str, tuple[str, Any, Any]] = {
        "bc": ("bc", bc.Config(**SIZES), bc.Hypers(learning_rate=rate)),
        "td3_bc": ("td3_bc", td3_bc.Config(**SIZES), td3_bc.Hypers(**rates)),
        "iql": ("iql", iql.Config(**SIZES), iql.Hypers(**rates, value_learning_rate=rate)),
        "awac": ("awac", awac.Config(**SIZES), awac.Hypers(**rates)),
        "cql": (
            "cql",
            cql.Config(batch_size=64, num_actions=3, **networks_of_cql),
            cql.Hypers(**rates, alpha_learning_rate=rate),
        ),
        "rebrac": ("rebrac", rebrac.Config(**SIZES), rebrac.Hypers(**rates)),
        "edac": ("edac", edac.Config(**SIZES, num_critics=5), edac_hypers),
        "sac_n": ("edac", edac.Config(**SIZES, num_critics=5, diversity=False), edac_hypers),
        "prdc": ("prdc", prdc.Config(**SIZES), prdc.Hypers(**rates)),
        "a2pr": ("a2pr", a2pr.Config(**SIZES, **networks_of_a2pr), a2pr.Hypers(**rates, value_learning_rate=rate)),
    }
    for base in ("td3_bc", "iql"):
        spec = algorithms.get(f"{base}+cdsa")
        _, config, hypers = found[base]
        found[f"{base} + CDSA-style"] = (
            f"{base}+cdsa",
            spec.config(**vars(config), **CORRECTION),
            spec.hypers(**hypers._asdict(), score_learning_rate=rate, dynamics_learning_rate=rate),
        )
    return found


LEARNERS = {environment: learners(*rates) for environment, rates in RATES.items()}
TIERS = ("medium", "medium-replay", "medium-expert")


def cell(label: str, environment: str, tier: str, sampling: str = "uniform", suffix: str = "") -> Cell:
    """One learner on one dataset at 32 seeds."""
    algorithm, config, hypers = LEARNERS[environment][label]
    return Cell(
        algorithm,
        environment,
        steps=STEPS,
        seeds=32,
        config=config,
        hypers=hypers,
        evaluations=5,
        eval_episodes=4,
        label=label + suffix,
        dataset=f"{environment}/{tier}",
        sampling=sampling,
    )


EXPERIMENT = Experiment(
    name="offline",
    description="offline learners on six datasets of two physics tasks, 32 seeds each",
    cells=tuple(
        each
        for environment in RATES
        for tier in TIERS
        for each in (
            *(cell(label, environment, tier) for label in LEARNERS[environment]),
            cell("bc", environment, tier, "top=0.1", " top 10"),
        )
    ),
)

WEIGHTING = Experiment(
    name="offline_weighting",
    description="how transitions are drawn where 5 % of them are an expert's and the others random, 32 seeds each",
    cells=tuple(
        cell(label, environment, "random-expert-5", sampling, suffix)
        for environment in RATES
        for label in ("bc", "td3_bc", "iql")
        for sampling, suffix in (
            ("uniform", ""),
            ("advantage_weighted=0.1", " AW"),
            ("return_weighted=0.1", " RW"),
            ("top=0.1", " top 10"),
        )
    ),
)

TRIED = tuple((rate, tau) for rate in (3e-4, 1e-3, 3e-3, 1e-2) for tau in (0.005, 0.02))
"""rates that `RATES` was chosen from"""

CHOICE = Experiment(
    name="offline_rates",
    description="two learners at all rates on one dataset of each task, 16 seeds that are reported nowhere else",
    cells=tuple(
        dataclasses.replace(
            cell(label, environment, "medium"),
            seeds=16,
            first_seed=1000,
            hypers=tuple(learners(*rates)[label][2] for rates in TRIED),
        )
        for environment in RATES
        for label in ("td3_bc", "iql")
    ),
)

LONGER = Experiment(
    name="offline_longer",
    description="three learners on two datasets of Hopper for 20,000 gradient steps, 16 seeds each",
    cells=tuple(
        dataclasses.replace(cell(label, "brax/hopper/spring", tier), steps=20_000, seeds=16, evaluations=10)
        for tier in ("medium", "medium-expert")
        for label in ("td3_bc", "iql", "a2pr")
    ),
)

FULL = Experiment(
    name="offline_full",
    description="offline learners on nine datasets of three of Gymnasium's tasks, a million steps, 256 seeds each",
    cells=tuple(
        Cell(
            algorithm,
            f"mujoco/{task}-v5",
            steps=1_000_000,
            seeds=256,
            evaluations=20,
            eval_episodes=10,
            dataset=f"mujoco/{task}-v5/{tier}",
        )
        for task in ("Hopper", "HalfCheetah", "Walker2d")
        for tier in TIERS
        for algorithm in ("bc", "td3_bc", "iql", "awac", "cql", "rebrac", "edac", "prdc", "a2pr")
    ),
)
