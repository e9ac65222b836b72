"""Rewards for generated images, molecules and DNA: callables from samples to one float each."""

from .base import Reward, RewardError, as_reward

__all__ = ["Reward", "RewardError", "as_reward"]
