"""The fields of a method's `Config` that loops and losses read, for the type checker. Their texts are in the methods.

Properties, since a `Config` is frozen.
"""

from __future__ import annotations

from typing import Protocol


class OffPolicy(Protocol):
    """The sizes of the off-policy loop."""

    @property
    def num_envs(self) -> int: ...
    @property
    def gradient_steps(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def buffer_size(self) -> int: ...
    @property
    def warmup_steps(self) -> int: ...


class DistributionalSAC(OffPolicy, Protocol):
    """Sizes and flags of the distributional soft actor-critics."""

    @property
    def num_steps(self) -> int: ...
    @property
    def hidden_sizes(self) -> tuple[int, ...]: ...
    @property
    def policy_delay(self) -> int: ...
    @property
    def learn_alpha(self) -> bool: ...
    @property
    def value_bias_episodes(self) -> int: ...
    @property
    def steps_per_update(self) -> int: ...


class Normalization(Protocol):
    """What an on-policy method divides by running statistics."""

    @property
    def normalize_obs(self) -> bool: ...
    @property
    def normalize_reward(self) -> bool: ...


class OnPolicy(Normalization, Protocol):
    """Sizes and normalisation of the on-policy loop."""

    @property
    def num_envs(self) -> int: ...
    @property
    def num_steps(self) -> int: ...
    @property
    def num_epochs(self) -> int: ...
    @property
    def num_minibatches(self) -> int: ...
    @property
    def hidden_sizes(self) -> tuple[int, ...]: ...


class PPOLosses(Protocol):
    """The flags of PPO's losses."""

    @property
    def normalize_advantage(self) -> bool: ...
    @property
    def clip_value(self) -> bool: ...


class RolloutBuffer(OnPolicy, PPOLosses, Protocol):
    """Those of the loop on a buffer of past rollouts."""

    @property
    def buffer_batches(self) -> int: ...
    @property
    def anneal_learning_rate(self) -> bool: ...
    @property
    def sampling_error_epochs(self) -> int: ...
    @property
    def sampling_error_interval(self) -> int: ...


class Offline(Protocol):
    """Batches and normalisation of a loop on a dataset."""

    @property
    def batch_size(self) -> int: ...
    @property
    def normalize_obs(self) -> bool: ...


class OfflineTD3(Offline, Protocol):
    """Those of the loop of TD3 on a dataset."""

    @property
    def hidden_sizes(self) -> tuple[int, ...]: ...
    @property
    def policy_delay(self) -> int: ...
