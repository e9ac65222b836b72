"""Rewards for generated images, molecules and DNA: callables from samples to one float each."""

from .base import Each, Reward, RewardError, RewardWarning, as_reward

__all__ = ["Each", "Reward", "RewardError", "RewardWarning", "as_reward"]
