"""Rejax' side of the table that compare.py makes: trains what a JSON job says and prints how long it took.

    cd docs; python -m peers.with_rejax '{"algorithm": "ppo", "environment": "CartPole-v1", "runs": 16, ...}'

All seeds in one `jax.vmap` of Rejax' own `train`, as its README shows it, compiled ahead of time. Needs rejax and
gymnax 0.0.9 (with a newer one it does not run), in an environment without rlsuite. The job and the answer are described
in compare.py.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from typing import Any

import jax
import rejax
from peers.answer import Training, answer_of
from rejax.evaluate import evaluate


def ppo(job: dict[str, Any]) -> Any:
    config, hypers = job["config"], job["hypers"]
    steps = job["updates"] * config["num_envs"] * config["num_steps"]
    return rejax.PPO.create(
        env=job["environment"],
        agent_kwargs={"activation": "tanh", "hidden_layer_sizes": config["hidden_sizes"]},
        num_envs=config["num_envs"],
        num_steps=config["num_steps"],
        num_epochs=config["num_epochs"],
        num_minibatches=config["num_minibatches"],
        normalize_observations=config["normalize_obs"],
        normalize_rewards=config["normalize_reward"],
        learning_rate=hypers["learning_rate"],
        gamma=hypers["discount"],
        gae_lambda=hypers["gae_lambda"],
        clip_eps=hypers["clip_epsilon"],
        ent_coef=hypers["entropy_coef"],
        vf_coef=hypers["value_coef"],
        max_grad_norm=hypers["max_grad_norm"],  # of each number, where the others clip the norm
        total_timesteps=steps,
        eval_freq=steps,
        skip_initial_evaluation=True,
    )


def sac(job: dict[str, Any]) -> Any:
    config, hypers = job["config"], job["hypers"]
    steps = config["warmup_steps"] + job["updates"] * config["num_envs"]
    return rejax.SAC.create(
        env=job["environment"],
        hidden_layer_sizes=config["hidden_sizes"],
        num_envs=config["num_envs"],
        num_epochs=config["gradient_steps"],
        batch_size=config["batch_size"],
        buffer_size=config["buffer_size"],
        fill_buffer=config["warmup_steps"],
        learning_rate=hypers["critic_learning_rate"],
        gamma=hypers["discount"],
        polyak=1.0 - hypers["tau"],
        total_timesteps=steps,
        eval_freq=steps,
        skip_initial_evaluation=True,
    )


LEARNERS = {"ppo": ppo, "sac": sac}


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Train all runs of the job, `repeats` times."""

    def few_episodes(algorithm: Any, state: Any, key: jax.Array) -> Any:
        params = algorithm.env_params
        act = algorithm.make_act(state)
        return evaluate(act, key, algorithm.env, params, job["eval_episodes"], params.max_steps_in_episode)

    algorithm = LEARNERS[job["algorithm"]](job).replace(eval_callback=few_episodes)
    keys = jax.random.split(jax.random.key(0), job["runs"])
    began = time.perf_counter()
    train = jax.jit(jax.vmap(algorithm.train)).lower(keys).compile()
    compile_seconds = time.perf_counter() - began

    def again(seed: int) -> Training:
        """The same seeds each time."""
        began = time.perf_counter()
        _, (_, returns) = jax.block_until_ready(train(keys))
        return Training(time.perf_counter() - began, score=float(returns[:, -1].mean()))

    versions = {"rejax": version("rejax"), "jax": jax.__version__}
    device = jax.local_devices()[0]
    peak = None if device.platform == "cpu" else lambda: int(device.memory_stats()["peak_bytes_in_use"])
    return answer_of(job, again, versions, compile_seconds, f"{job['runs']} at once", peak)


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
