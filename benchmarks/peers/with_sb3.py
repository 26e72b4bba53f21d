"""Stable-Baselines3's side of the table that compare.py makes: trains what a JSON job says and prints how long it took.

    cd docs; python -m peers.with_sb3 '{"algorithm": "ppo", "environment": "CartPole-v1", "config": {...}, ...}'

One run of its own PPO or SAC on Gymnasium's environments, with the job's sizes, update ratio and evaluation, and its
own normalisation. Its clipped value loss is that of the clipped value alone, where the others take the larger of both.
Needs stable_baselines3; neither JAX nor rlsuite.
"""

from __future__ import annotations

import json
import math
import sys
import time
from typing import Any

import gymnasium
import stable_baselines3
import torch
from peers.answer import Job, Training, answer_of
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, VecNormalize


class Stopwatch(BaseCallback):
    """When the last step of the warm-up was over."""

    def __init__(self, warmup_steps: int) -> None:
        super().__init__()
        self.warmup_steps = warmup_steps
        self.began = 0.0

    def _on_training_start(self) -> None:
        self.began = time.perf_counter()

    def _on_step(self) -> bool:
        if self.num_timesteps <= self.warmup_steps:
            self.began = time.perf_counter()
        return True


def envs_of(job: Job, num_envs: int, training: bool) -> VecEnv:
    """Environments side by side, normalised for PPO as its config says."""
    config = job["config"]
    envs = make_vec_env(job["environment"], num_envs, seed=0 if training else 1)
    if not (config.get("normalize_obs") or config.get("normalize_reward")):
        return envs
    rewards = training and config["normalize_reward"]
    return VecNormalize(envs, training, config["normalize_obs"], rewards, gamma=job["hypers"]["discount"])


def ppo(job: Job, action_dim: int) -> dict[str, Any]:
    config, hypers = job["config"], job["hypers"]
    rate, sizes = hypers["learning_rate"], config["hidden_sizes"]
    return {
        "learning_rate": (lambda remaining: rate * remaining) if config["anneal_learning_rate"] else rate,
        "n_steps": config["num_steps"],
        "batch_size": config["num_envs"] * config["num_steps"] // config["num_minibatches"],
        "n_epochs": config["num_epochs"],
        "gamma": hypers["discount"],
        "gae_lambda": hypers["gae_lambda"],
        "clip_range": hypers["clip_epsilon"],
        "clip_range_vf": hypers["clip_epsilon"] if config["clip_value"] else None,
        "normalize_advantage": config["normalize_advantage"],
        "ent_coef": hypers["entropy_coef"],
        "vf_coef": 0.5 * hypers["value_coef"],  # its value loss is not halved
        "max_grad_norm": hypers["max_grad_norm"],
        "policy_kwargs": {"net_arch": {"pi": sizes, "vf": sizes}},  # with tanh, which is the default
    }


def sac(job: Job, action_dim: int) -> dict[str, Any]:
    config, hypers = job["config"], job["hypers"]
    alpha = hypers["initial_alpha"]
    return {
        "learning_rate": hypers["critic_learning_rate"],
        "buffer_size": min(config["buffer_size"], steps_of(job)),
        "learning_starts": warmup_of(job),
        "batch_size": config["batch_size"],
        "tau": hypers["tau"],
        "gamma": hypers["discount"],
        "train_freq": 1,
        "gradient_steps": config["gradient_steps"],
        "ent_coef": f"auto_{alpha}" if config["learn_alpha"] else alpha,
        "target_entropy": -hypers["target_entropy_scale"] * action_dim,
        "policy_kwargs": {"net_arch": config["hidden_sizes"]},
    }


SETTINGS = {"ppo": ppo, "sac": sac}
"""algorithm -> (job, dimensions of an action) -> the arguments of its class"""


def warmup_of(job: Job) -> int:
    """Steps of all environments before learning starts, in whole updates."""
    num_envs = job["config"]["num_envs"]
    return -(-job["config"].get("warmup_steps", 0) // num_envs) * num_envs


def steps_of(job: Job) -> int:
    """Environment steps of the whole training."""
    return warmup_of(job) + job["updates"] * job["config"]["num_envs"] * job["config"].get("num_steps", 1)


def check(job: Job, peer: str) -> None:
    """Exit with one line if this peer does not do what the job asks for."""
    if job["algorithm"] not in SETTINGS:
        sys.exit(f"algorithm={job['algorithm']!r} is not asked of {peer}; choose one of {sorted(SETTINGS)}")
    if job["runs"] > 1:
        sys.exit(f"runs={job['runs']}: {peer} trains one run; start a process for each")
    rates = {name: value for name, value in job["hypers"].items() if name.endswith("_learning_rate")}
    if len(set(rates.values())) > 1:
        sys.exit(f"{rates}: {peer}'s SAC gets one learning rate here; set all to the same")
    if job["config"].get("policy_delay", 1) != 1:
        sys.exit(f"policy_delay={job['config']['policy_delay']}: {peer}'s SAC has none here; set it to 1")


def train(job: Job, learners: dict[str, type[BaseAlgorithm]], seed: int) -> Training:
    """Train and evaluate one run of a job with the class of its algorithm."""
    envs = envs_of(job, job["config"]["num_envs"], training=True)
    action_dim = math.prod(envs.action_space.shape or ())
    settings = SETTINGS[job["algorithm"]](job, action_dim)
    model = learners[job["algorithm"]]("MlpPolicy", envs, seed=seed, device="cpu", **settings)
    stopwatch, began = Stopwatch(warmup_of(job)), time.perf_counter()
    model.learn(steps_of(job), callback=stopwatch, log_interval=None)
    score = None
    if job["eval_episodes"]:
        outside = envs_of(job, job["eval_episodes"], training=False)
        if isinstance(outside, VecNormalize):
            outside.obs_rms = envs.obs_rms
        returned, _ = evaluate_policy(model, outside, n_eval_episodes=job["eval_episodes"])
        score = float(returned)
    return Training(time.perf_counter() - stopwatch.began, stopwatch.began - began, score)


def measure(job: Job) -> dict[str, Any]:
    """Train and evaluate, `repeats` times from the beginning."""
    check(job, "Stable-Baselines3")
    torch.set_num_threads(job["threads"])
    versions = {
        "stable_baselines3": stable_baselines3.__version__,
        "torch": torch.__version__,
        "gymnasium": gymnasium.__version__,
    }
    return answer_of(job, lambda seed: train(job, {"ppo": PPO, "sac": SAC}, seed), versions)


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
